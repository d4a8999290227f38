// Pictures: those of the lanes side by side, runs below each other, all of a row of one kind on one scale.

/** One picture over the steps: shows the newest that was logged up to the slider's step. */
class Film {
  constructor(member, sources, widest) {
    this.member = member;
    this.sources = sources;
    this.image = element("img", { decoding: "async" });
    this.caption = element("figcaption");
    this.figure = element("figure", { class: "film", "data-key": member.key }, this.image, this.caption);
    this.widest = widest;
  }

  show(step) {
    const shots = this.member.run.pictures[this.member.key];
    const place = placeAt(shots.map((shot) => shot[0]), step);
    const [taken, source, caption, width, height] = shots[Math.max(place, 0)];
    this.figure.classList.toggle("early", place < 0);
    if (this.image.getAttribute("src") !== this.sources[source]) this.image.src = this.sources[source];
    this.image.width = width;
    this.image.height = height;
    this.image.style.width = `${(100 * width) / this.widest}%`;
    const when = place < 0 ? `not yet logged; first at step ${spoken(taken)}` : `step ${spoken(taken)}`;
    this.image.alt = `${caption}, ${when}`;
    this.caption.replaceChildren(element("span", {}, caption), element("span", { class: "when" }, when));
  }

  update(member, sources) {
    this.member = member;
    this.sources = sources;
  }
}

/** Small pictures are shown larger, by a whole number so that their pixels stay square. */
function enlarged(width) {
  return width * Math.max(1, Math.floor(400 / Math.max(width, 1)));
}

/** All films of some groups; appends their rows to `room`. */
function layFilms(room, groups, runs, sources) {
  const films = [];
  const sorted = groups.toSorted((a, b) => (a.members[0].lane === null) - (b.members[0].lane === null));
  for (const group of sorted) {
    const shots = group.members.flatMap((member) => member.run.pictures[member.key]);
    const widest = Math.max(1, ...shots.map((shot) => shot[3]));
    const block = element("div", { class: "kind" }, element("h2", {}, [group.section && sectionTitle(group.section), group.section ? words(group.chart) : sectionTitle(group.chart)].filter(Boolean).join(" · ")));
    const lanes = group.members[0].lane !== null;
    const row = (members, label) => {
      const grid = element("div", { class: "films" });
      grid.style.setProperty("--width", `${enlarged(widest)}px`);
      if (widest < 200) grid.classList.add("pixels");
      for (const member of members) {
        const film = new Film(member, sources, widest);
        if (!lanes && runs.length > 1) film.figure.prepend(element("h3", {}, swatch(`--run-${member.run.place % 4}`, DASHES[member.run.place % 4]), member.run.label));
        films.push(film);
        grid.append(film.figure);
      }
      if (label) block.append(element("h3", {}, swatch("--ink", DASHES[label.place % 4]), label.label));
      block.append(grid);
    };
    if (lanes && runs.length > 1) {
      for (const run of runs) {
        const own = group.members.filter((member) => member.run === run);
        if (own.length) row(own, run);
      }
    } else row(group.members, null);
    room.append(block);
  }
  return films;
}
