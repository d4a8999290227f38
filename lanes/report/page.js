// The page itself: lays everything out, moves it together by the slider, and asks a live server for news.

const ASK_EVERY_MS = 3000;
const PLAY_EVERY_MS = 700;
const find = (id) => document.getElementById(id);
const state = { data: null, runs: [], hidden: new Set(), open: new Map(), steps: [], shots: [], step: 0, charts: [], films: [], shape: "", timer: null };
const slider = find("step");

/** Everything at one step: the slider, its words, all pictures and all curves. */
function goTo(step) {
  const place = Math.max(0, placeAt(state.steps, step));
  state.step = state.steps[place] ?? 0;
  slider.value = place;
  const said = `${spoken(state.step)} of ${spoken(state.steps.at(-1) ?? 0)}`;
  slider.setAttribute("aria-valuetext", `step ${said}`);
  find("step-words").textContent = said;
  find("previous").disabled = placeAt(state.shots, state.step - 1) < 0;
  find("next").disabled = !(state.shots.at(-1) > state.step);
  state.films.forEach((film) => film.show(state.step));
  state.charts.forEach((chart) => chart.mark(state.step));
}

/** The logged step nearest to where somebody pointed. */
function goNear(value) {
  const before = Math.max(0, placeAt(state.steps, value));
  const after = Math.min(before + 1, state.steps.length - 1);
  goTo(state.steps[value - state.steps[before] > state.steps[after] - value ? after : before]);
}

function goToPicture(forward) {
  const place = forward ? placeAt(state.shots, state.step) + 1 : placeAt(state.shots, state.step - 1);
  if (place in state.shots) goTo(state.shots[place]);
  return forward ? place + 1 in state.shots : place > 0;
}

function play(on) {
  clearInterval(state.timer);
  state.timer = null;
  if (on) {
    if (!(state.shots.at(-1) > state.step)) goTo(state.shots[0] ?? 0);
    state.timer = setInterval(() => { if (!goToPicture(true)) play(false); }, PLAY_EVERY_MS);
  }
  find("play").textContent = on ? "Stop" : "Play";
  find("play").setAttribute("aria-pressed", String(on));
}

function limits() {
  const [first, last] = [state.steps[0] ?? 0, state.steps.at(-1) ?? 1];
  return first === last ? [first, first + 1] : [first, last];
}

function isOpen(name, atFirst) {
  return state.open.get(name) ?? atFirst;
}

function layCurves(room, groups) {
  room.replaceChildren(...(groups.length ? [element("h2", {}, "Curves")] : []));
  state.charts = [];
  for (const [section, own] of inSections(groups)) {
    const grid = element("div", { class: "charts" });
    const details = element("details", { "data-name": `curves ${section}` }, element("summary", {}, `${sectionTitle(section)} `, element("span", { class: "small" }, `${own.length} chart${own.length > 1 ? "s" : ""}`)), grid);
    details.open = isOpen(`curves ${section}`, section !== "health");
    const charts = own.map((group) => new Chart(group, state.runs.length, limits, goNear));
    grid.append(...charts.map((chart) => chart.figure));
    details.addEventListener("toggle", () => charts.forEach((chart) => chart.resize()));
    state.charts.push(...charts);
    room.append(details);
  }
  state.charts.forEach((chart) => chart.draw());
}

/** Do something that builds parts anew, and put the keyboard's focus back where it was. */
function keepingFocus(build) {
  const before = document.activeElement;
  const part = before?.closest("details[data-name]")?.dataset.name;
  build();
  if (before?.isConnected) return;
  const again = before?.id ? find(before.id) : part && document.querySelector(`details[data-name="${CSS.escape(part)}"] > summary`);
  again?.focus({ preventScroll: true });
}

/** Show data; what a person chose (step, runs, open parts) stays. At the last step the slider follows the training. */
function render(data) {
  const follows = state.step === (state.steps.at(-1) ?? 0);
  data.runs.forEach((run, place) => { run.place = place; });
  state.data = data;
  state.runs = data.runs.filter((run) => !state.hidden.has(run.id));
  state.steps = allSteps(state.runs, ["scalars", "pictures", "texts"]);
  state.shots = allSteps(state.runs, ["pictures"]);
  slider.max = Math.max(0, state.steps.length - 1);
  find("stepper").hidden = state.steps.length < 2;
  find("made").textContent = `${data.runs.length} run${data.runs.length > 1 ? "s" : ""}; ${data.live ? "live" : `made ${data.made}`} by lanes ${data.version}`;
  const [curves, pictures] = [grouped(state.runs, "scalars"), grouped(state.runs, "pictures")];
  const shape = JSON.stringify([curves, pictures].map((groups) => groups.map((group) => group.members.map((member) => [member.key, member.run.id]))));
  if (shape !== state.shape) {
    state.shape = shape;
    find("pictures").replaceChildren();
    state.films = layFilms(find("pictures"), pictures, state.runs, data.sources);
    layCurves(find("curves"), curves);
  } else {
    const members = new Map(pictures.flatMap((group) => group.members).map((member) => [`${member.key}\n${member.run.id}`, member]));
    state.films.forEach((film) => film.update(members.get(`${film.member.key}\n${film.member.run.id}`), data.sources));
    const byName = new Map(curves.map((group) => [`${group.section}\n${group.chart}`, group]));
    state.charts.forEach((chart) => chart.update(byName.get(`${chart.group.section}\n${chart.group.chart}`)));
  }
  runCards(find("runs"), data.runs, data.live, state.hidden, (id, shown) => {
    if (shown) state.hidden.delete(id); else state.hidden.add(id);
    keepingFocus(() => render(state.data));
  });
  numberTables(find("numbers"), state.runs, isOpen);
  goTo(follows ? state.steps.at(-1) ?? 0 : state.step);
}

async function askForNews() {
  let trouble = "";
  try {
    const answer = await fetch("data.json", { cache: "no-cache" });
    if (answer.ok) {
      const text = await answer.text();
      if (text !== state.text) {
        state.text = text;
        keepingFocus(() => render(JSON.parse(text)));
      }
    } else trouble = await answer.text();
  } catch {
    trouble = "The server does not answer: it has ended. What you see is the last that it said.";
  }
  find("notice").textContent = trouble;
  find("notice").hidden = !trouble;
  setTimeout(askForNews, ASK_EVERY_MS);
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  find("theme").value = theme;
  try { localStorage.setItem("lanes-theme", theme); } catch { /* a page from disk may not keep anything */ }
  state.charts.forEach((chart) => chart.uplot?.redraw(false));
}

slider.addEventListener("input", () => { play(false); goTo(state.steps[slider.valueAsNumber]); });
find("previous").addEventListener("click", () => { play(false); goToPicture(false); });
find("next").addEventListener("click", () => { play(false); goToPicture(true); });
find("play").addEventListener("click", () => play(!state.timer));
find("theme").addEventListener("change", (event) => setTheme(event.target.value));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.charts.forEach((chart) => chart.uplot?.redraw(false)));
addEventListener("resize", () => state.charts.forEach((chart) => chart.resize()));
document.addEventListener("toggle", (event) => {
  if (event.target.dataset?.name) state.open.set(event.target.dataset.name, event.target.open);
}, true);
try { setTheme(localStorage.getItem("lanes-theme") ?? "auto"); } catch { setTheme("auto"); }
state.steps = [0];
render(JSON.parse(find("data").textContent));
if (state.data.live) setTimeout(askForNews, ASK_EVERY_MS);
