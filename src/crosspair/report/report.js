"use strict";

// Texts of strangers become text nodes alone; the report has closed their bidirectional controls.
function element(tag, style, ...children) {
  const made = document.createElement(tag);
  if (style) made.className = style;
  made.append(...children);
  return made;
}

function sentence(tag, caption) {
  const blank = !caption.trim();
  const made = element(tag, blank ? "sentence quiet" : "sentence", blank ? "(empty caption)" : caption);
  made.dir = "auto";
  return made;
}

// A name of which a long one's middle is hidden; graphemes stay whole.
const graphemes = new Intl.Segmenter();
function shortName(name, most = 20) {
  const letters = Array.from(graphemes.segment(name), (each) => each.segment);
  const made = element("bdi");
  if (letters.length <= most) {
    made.append(name);
  } else {
    const tail = Math.round(most * 0.45);
    const [head, end] = [most - tail, letters.length - tail];
    const part = (from, to) => letters.slice(from, to).join("");
    made.append(part(0, head), element("span", "cut", part(head, end)), part(end));
    made.title = isolated(name);
  }
  return made;
}

// A text for an attribute, where there are no elements to keep its direction to itself.
const isolated = (text) => /[^ -~]/.test(text) ? `\u2068${text}\u2069` : text;

const map = document.querySelector(".map");
if (map) {
  const drawing = map.querySelector("svg");
  const points = Array.from(drawing.querySelectorAll(".point"), (element) =>
    ({ data: element.dataset, x: Number(element.dataset.x), y: Number(element.dataset.y) }));
  const { width, height } = drawing.viewBox.baseVal;
  const here = map.querySelector(".here");
  const shown = document.getElementById("shown");
  const image = document.createElement("span");
  image.className = "sheet";
  image.setAttribute("role", "img");
  const styles = ["sentence", "quiet small", "quiet small", "sentence", "quiet small"];
  const lines = styles.map((style) => Object.assign(element("p", style), { dir: style === "sentence" ? "auto" : "" }));
  shown.replaceChildren(image, ...lines);
  let current = null;

  function show(point) {
    if (point === current) return;
    current = point;
    const { name, position, note0, note1, note2, note3 } = point.data;
    here.style.left = 100 * point.x / width + "%";
    here.style.top = 100 * point.y / height + "%";
    here.hidden = false;
    image.style.backgroundPosition = position;
    image.hidden = !position;
    image.setAttribute("aria-label", isolated(name));
    const said = [note0, note1, note2 && "The caption it retrieves first:", note2];
    said.forEach((text, index) => { lines[index].textContent = text; lines[index].hidden = !text; });
    lines[4].replaceChildren(element("bdi", "", name), ` ${note3}`);
  }

  const best = (candidates, cost) =>
    candidates.reduce((found, point) => cost(point) < cost(found) ? point : found, candidates[0]);

  function follow(event) {
    const landmark = event.target.closest(".landmark");
    const box = drawing.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * width;
    const y = (event.clientY - box.top) / box.height * height;
    show(landmark ? points[landmark.dataset.place] : best(points, (point) => Math.hypot(point.x - x, point.y - y)));
  }

  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function step(event) {
    const direction = directions[event.key];
    if (!direction || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [right, down] = direction;
    const along = (point) => (point.x - current.x) * right + (point.y - current.y) * down;
    const aside = (point) => Math.abs((point.x - current.x) * down) + Math.abs((point.y - current.y) * right);
    const ahead = points.filter((point) => along(point) > 0 && aside(point) <= along(point));
    if (ahead.length) show(best(ahead, (point) => along(point) + 2 * aside(point)));
  }

  show(best(points, (point) => Math.hypot(point.x - width / 2, point.y - height / 2)));
  shown.setAttribute("aria-live", "polite");
  map.addEventListener("pointermove", follow);
  map.addEventListener("pointerdown", follow);
  map.addEventListener("keydown", step);
}

const form = document.getElementById("filters");
if (form) {
  const { models, directions, images, texts, sheet, found } = JSON.parse(document.getElementById("queries-data").textContent);
  const list = document.getElementById("list");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const [FIRST, STEP] = [20, 50];
  const folded = (text) => text.normalize("NFKC").toLowerCase();
  const captionsOf = new Map();
  texts.image?.forEach((image, text) => {
    if (!captionsOf.has(image)) captionsOf.set(image, []);
    captionsOf.get(image).push(texts.caption[text]);
  });

  const queries = directions.flatMap((direction, at) => direction.queries.map((row, place) => {
    const ofTexts = direction.name === "text_to_image";
    const own = ofTexts ? texts.image[row] : row;
    const captions = ofTexts ? [texts.caption[row]] : captionsOf.get(row) ?? [];
    return {
      direction, at, place, row, ofTexts, own,
      label: (ofTexts ? texts : images).label[row],
      ranks: direction.ranks.map((ranks) => ranks[place]),
      words: folded([...captions, images.name[own] ?? ""].join(" ")),
    };
  }));

  const among = ([first, second]) => first <= found && second <= found ? "both"
    : first <= found ? "first" : second <= found ? "second" : "none";
  const lead = ({ ranks: [first, second] }) => Math.log(second / first);
  const inData = (a, b) => a.at - b.at || a.place - b.place;
  const orders = {
    data: inData,
    best: (a, b) => a.ranks[0] - b.ranks[0] || inData(a, b),
    worst: (a, b) => b.ranks[0] - a.ranks[0] || inData(a, b),
    label: (a, b) => a.label.localeCompare(b.label, "en", { numeric: true }) || inData(a, b),
    lead: (a, b) => lead(b) - lead(a) || inData(a, b),
    lag: (a, b) => lead(a) - lead(b) || inData(a, b),
  };

  function chosen() {
    const wanted = Object.fromEntries(new FormData(form));
    const words = folded(wanted.words).split(/\s+/).filter(Boolean);
    const [low, high] = [Number(wanted.low) || 1, Number(wanted.high) || Infinity];
    const label = wanted.label.trim();
    return queries.filter((query) =>
      words.every((word) => query.words.includes(word))
      && query.ranks[0] >= low && query.ranks[0] <= high
      && (!label || query.label === label)
      && (!wanted.direction || query.direction.name === wanted.direction)
      && (!wanted.found || (query.ranks.length > 1 && among(query.ranks) === wanted.found)),
    ).sort(orders[wanted.order]);
  }

  function picture(row) {
    const name = element("span", "of", shortName(images.name[row]), " ", element("span", "id", images.id[row]));
    const cell = images.cell[row];
    if (cell < 0) return [element("span", "unseen", name)];
    const [columns, lines] = sheet;
    const share = (part, whole) => `${whole > 1 ? 100 * part / (whole - 1) : 0}%`;
    const made = element("span", "sheet");
    made.style.backgroundPosition = `${share(cell % columns, columns)} ${share(Math.floor(cell / columns), lines)}`;
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", isolated([images.name[row], captionsOf.get(row)?.[0]].filter(Boolean).join(": ")));
    return [made, name];
  }

  const mark = () => element("span", "mark-relevant", "✓ relevant");

  function ranking(query, model) {
    const { direction, ofTexts } = query;
    const what = ofTexts ? "picture" : "caption";
    const rank = `first relevant ${what} at rank ${query.ranks[model].toLocaleString("en")} of ${direction.gallery.toLocaleString("en")}`;
    const verdict = element("p", "verdict");
    if (models.length) verdict.append(element("b", "", element("bdi", "", models[model])), ": ");
    verdict.append(rank);
    const items = direction.items[model];
    if (!items?.length) return [verdict];
    const shown = element("ol", ofTexts ? "images" : "captions");
    items[query.place].forEach((item, place) => {
      const relevant = (ofTexts ? images : texts).label[item] === query.label;
      const line = element("li", relevant ? "is-relevant" : "");
      if (ofTexts) {
        line.append(...picture(item));
        if (relevant) line.append(element("span", "note", mark()));
      } else {
        const said = element("span", "", sentence("span", texts.caption[item]));
        if (relevant) said.append(" ", mark());
        line.append(element("span", "quiet", String(place + 1)), said);
      }
      shown.append(line);
    });
    return [verdict, shown];
  }

  function entry(query) {
    const rankings = query.ranks.flatMap((_, model) => ranking(query, model));
    const about = element("p", "quiet small about", `label ${query.label}`);
    if (!query.ofTexts) {
      const beside = element("div", "", ...rankings, about);
      return element("li", "card query by-image", element("div", "asked", ...picture(query.row)), beside);
    }
    if (query.own >= 0) about.append(" · of ", element("bdi", "", images.name[query.own]), ` (${images.id[query.own]})`);
    return element("li", "card query", sentence("p", texts.caption[query.row]), ...rankings, about);
  }

  let matching = [];
  let waiting = 0;

  function grow(by) {
    const before = list.children.length;
    const next = matching.slice(before, before + by).map(entry);
    list.append(...next);
    const left = matching.length - list.children.length;
    more.hidden = !left;
    more.textContent = `Show ${Math.min(STEP, left)} more`;
    const total = queries.length.toLocaleString("en");
    count.textContent = matching.length
      ? `${matching.length.toLocaleString("en")} of ${total} queries, ${list.children.length.toLocaleString("en")} shown`
      : `None of ${total} queries; clear the filters to see them all`;
    return next[0];
  }

  function filter() {
    clearTimeout(waiting);
    matching = chosen();
    list.replaceChildren();
    grow(FIRST);
  }

  const soon = () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); };
  form.addEventListener("input", soon);
  form.addEventListener("change", filter);  // Enter, or another choice: at once
  form.addEventListener("reset", soon);
  form.addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  more.addEventListener("click", () => {
    const first = grow(STEP);
    if (!first) return;
    first.tabIndex = -1;  // the keyboard goes on where the new ones begin
    first.focus();
  });
  form.hidden = false;
  filter();
}

// On paper every table is open, and what was closed is closed again.
const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open])"));
  closed.forEach((each) => { each.open = true; });
});
addEventListener("afterprint", () => closed.splice(0).forEach((each) => { each.open = false; }));
