// The runs in words: how each went, its last values, configuration and versions; what differs is marked.

function runCards(room, runs, live, hidden, toggle) {
  room.replaceChildren(...runs.map((run) => {
    const steps = allSteps([run], ["scalars", "pictures", "texts"]);
    const last = steps.length ? `${spoken(steps.at(-1))} steps` : "nothing logged yet";
    const parts = run.parts > 1 ? `, merged from ${run.parts} folders` : "";
    const card = element("article", { class: "card" });
    const head = element("h2", {}, swatch("--ink", DASHES[run.place % DASHES.length]), run.label);
    if (runs.length > 1) {
      const box = element("input", { type: "checkbox", id: `show-${run.place}`, "aria-label": `show ${run.label}` });
      box.checked = !hidden.has(run.id);
      box.addEventListener("change", () => toggle(run.id, box.checked));
      head.append(box);
    }
    card.append(head, element("p", {}, `${last} in ${duration(run.runtime)}; ${endingOf(run, live)}${parts}.`));
    const best = bestWords(run);
    if (best) card.append(element("p", {}, best));
    if (run.facts.started) card.append(element("p", { class: "small" }, `started ${run.facts.started}`));
    for (const [key, [, texts]] of Object.entries(run.texts)) {
      card.append(element("p", {}, element("b", {}, `${words(key)}: `), texts.at(-1)));
    }
    return card;
  }));
}

/** "validation loss 0.165 (lowest 0.161 at step 1,200); ..." of the measures that people judge a run by. */
function bestWords(run) {
  const said = Object.entries(run.scalars).filter(([key]) => /^(val|test)\//.test(key)).map(([key, [steps, values]]) => {
    const finite = values.map((value, place) => [value, steps[place]]).filter(([value]) => value !== null);
    const [phase, measure] = [key.split("/")[0], key.split("/").slice(1).join("/")];
    const name = `${phase.replace("val", "validation")} ${(TITLES_OF_CHARTS[measure] ?? words(measure)).replace(" (share)", "")}`;
    if (!finite.length) return `${name} never finite`;
    const lowest = /loss|error/.test(key);
    const best = finite.reduce((a, b) => ((lowest ? b[0] < a[0] : b[0] > a[0]) ? b : a));
    const where = best[0] === values.at(-1) ? "" : ` (${lowest ? "lowest" : "highest"} ${spoken(best[0])} at step ${spoken(best[1])})`;
    return `${name} ${spoken(values.at(-1))}${where}`;
  });
  return said.length ? `At the end: ${said.join("; ")}.` : "";
}

/** A long name that may break after its dots, dashes and slashes. */
function breakable(name) {
  return name.split(/(?<=[._/])/).flatMap((part) => [part, element("wbr")]).slice(0, -1);
}

/** A table with one column per run. `rows`: [name, [cell per run]]; a cell is text, or a list of nodes. */
function runTable(runs, heading, rows, { marked = true, onlyMarked = false } = {}) {
  const head = element("tr", {}, element("th", { scope: "col" }, heading), ...runs.map((run) => element("th", { scope: "col" }, run.label)));
  const body = rows.map(([name, cells]) => {
    const differs = marked && new Set(cells.map((cell) => cell ?? "")).size > 1;
    if (onlyMarked && !differs) return null;
    const line = element("tr", differs ? { class: "differs" } : {}, element("th", { scope: "row" }, ...breakable(name)));
    line.append(...cells.map((cell) => element("td", {}, ...[cell ?? "–"].flat())));
    return line;
  }).filter(Boolean);
  if (!body.length) return element("p", { class: "small" }, "No difference.");
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": heading }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

function nameRows(runs, kind) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run[kind])))].sort();
  return names.map((name) => [name, runs.map((run) => run[kind][name])]);
}

function valueRows(runs, members) {
  const keys = [...new Set(members.map((member) => member.key))].sort();
  return keys.map((key) => [key, runs.map((run) => {
    if (!(key in run.scalars)) return undefined;
    const [steps, values] = run.scalars[key];
    const finite = values.filter((value) => value !== null);
    const [low, high] = [Math.min, Math.max].map((extreme) => finite.reduce((one, other) => extreme(one, other), finite[0]));
    return [spoken(values.at(-1)), ...(low < high ? [element("span", { class: "range" }, ` ${spoken(low)} to ${spoken(high)}`)] : [])];
  })]);
}

/** Last values, configuration and versions; sections that a person had opened stay open. */
function numberTables(room, runs, isOpen) {
  const details = (name, title, ...content) => {
    const made = element("details", { "data-name": name }, element("summary", {}, title), ...content);
    made.open = isOpen(name, false);
    return made;
  };
  room.replaceChildren(element("h2", {}, "Numbers"), element("p", { class: "small" }, "Last values, below them the lowest and the highest."));
  for (const [section, groups] of inSections(grouped(runs, "scalars"))) {
    const table = runTable(runs, "measure", valueRows(runs, groups.flatMap((group) => group.members)), { marked: false });
    room.append(details(`values ${section}`, `Last values: ${sectionTitle(section)}`, table));
  }
  const config = nameRows(runs, "config");
  if (runs.length > 1 && config.length) {
    const table = runTable(runs, "configuration", config, { onlyMarked: true });
    const made = details("differences", "Configuration: what differs", table);
    made.open = isOpen("differences", true);
    room.append(made);
  }
  room.append(details("config", "Configuration", config.length ? runTable(runs, "configuration", config) : element("p", { class: "small" }, "None was logged, and no config.yaml lies beside the run.")));
  room.append(details("versions", "Versions and machine", runTable(runs, "version", nameRows(runs, "facts"))));
}
