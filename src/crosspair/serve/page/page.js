// The page: asks the service as one types, shows what it answers, and keeps every query in the browser's history.
// A query is {text}, {similar: id}, {upload: number} or {}, which shows some images of the gallery.

const STEP = 40; // images at a time
const MOST = 400;
const PAUSE = 120; // milliseconds without a key before the service is asked
const MAX_BYTES = 20 * 2 ** 20; // uploads.py refuses more
const KEPT = 60; // answers kept, for going back

const find = (id) => document.getElementById(id);
const [text, file, results, more, status, problem] = ["text", "file", "results", "more", "status", "problem"].map(find);
const answers = new Map();
const uploads = []; // files; their number is in the history
const previews = new Map(); // number -> blob address
let query = {};
let top_ = STEP;
let asking = null; // AbortController of the request under way
let timer = 0;
let typing = false; // keys of one burst replace each other in the history

takeToken();
show(fromAddress(), STEP);

text.addEventListener("input", () => {
  clearTimeout(timer);
  const words = text.value.trim();
  timer = setTimeout(() => go(words ? { text: words } : {}, typing), PAUSE);
});
find("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  const words = text.value.trim();
  if (words !== (query.text ?? "")) go(words ? { text: words } : {}, typing);
  typing = false;
});
text.addEventListener("change", () => { typing = false; });
file.addEventListener("change", () => {
  if (file.files.length) upload(file.files[0]);
  file.value = ""; // so that the same file can be chosen again
});
more.addEventListener("click", async () => {
  const before = results.children.length;
  await show(query, Math.min(top_ + STEP, MOST));
  results.children[before]?.querySelector("a").focus();
});
problem.querySelector("button").addEventListener("click", () => show(query, top_));
addEventListener("popstate", () => { typing = false; show(fromAddress(), history.state?.top ?? STEP); });
addEventListener("paste", (event) => {
  const image = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (image) upload(image);
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-go], a.home");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.dataset.go ? { similar: link.dataset.go } : {}, false);
  scrollTo(0, 0);
  if (!link.dataset.go) text.focus();
  else results.focus({ preventScroll: true });
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !event.target.matches("input")) {
    event.preventDefault();
    text.focus();
    text.select();
  } else if (event.key.startsWith("Arrow") && results.contains(document.activeElement)) {
    const next = neighbour(document.activeElement, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  }
});
dropping();

// The history

function fromAddress() {
  const parameters = new URLSearchParams(location.search);
  if (uploads[history.state?.upload]) return { upload: history.state.upload };
  if (parameters.has("similar")) return { similar: parameters.get("similar") };
  const words = parameters.get("q")?.trim();
  return words ? { text: words } : {};
}

function go(next, replace) {
  const parameters = new URLSearchParams();
  if (next.text) parameters.set("q", next.text);
  if (next.similar) parameters.set("similar", next.similar);
  const address = parameters.size ? `?${parameters}` : location.pathname;
  history[replace ? "replaceState" : "pushState"]({ upload: next.upload, top: STEP }, "", address);
  typing = next.similar === undefined && next.upload === undefined && document.activeElement === text;
  return show(next, STEP);
}

// Asking

async function show(next, top) {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  [query, top_] = [next, top];
  if (document.activeElement !== text || !typing) text.value = next.text ?? "";
  history.replaceState({ ...history.state, top }, "");
  const key = JSON.stringify([next, top]);
  try {
    if (!answers.has(key)) {
      busy(true);
      keep(key, await ask(next, top, signal));
    }
    if (signal.aborted) return;
    render(answers.get(key), next);
  } catch (error) {
    if (signal.aborted) return;
    complain(error);
  }
  busy(false);
}

function keep(key, answer) {
  answers.set(key, answer);
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
}

async function ask(next, top, signal) {
  const parameters = new URLSearchParams({ top });
  let address = "/images";
  const options = { signal, headers: {} };
  const token = sessionStorage.getItem("token");
  if (token) options.headers.Authorization = `Bearer ${token}`;
  if (next.text) {
    address = "/search";
    parameters.set("q", next.text);
  } else if (next.similar) {
    address = `/similar/${encodeURIComponent(next.similar)}`;
  } else if (next.upload !== undefined) {
    address = "/search";
    Object.assign(options, { method: "POST", body: uploads[next.upload] });
    if (options.body.size > MAX_BYTES) throw new Error("The picture has more than 20 MB. Choose a smaller one.");
  }
  for (let attempt = 1; ; attempt += 1) {
    const response = await fetch(`${address}?${parameters}`, options).catch((error) => {
      throw signal.aborted ? error : new Error("The service does not answer. Is it still running?");
    });
    if (response.ok) return response.json();
    if (response.status === 503 && attempt < 5) {
      await new Promise((resolve) => { setTimeout(resolve, 1000 * (response.headers.get("Retry-After") ?? 1)); });
      if (signal.aborted) throw new Error("aborted");
      continue;
    }
    if (response.status === 401) askForToken(Boolean(token));
    const body = await response.json().catch(() => ({}));
    throw new Error(sentence(body.detail ?? `the service answered with ${response.status}`));
  }
}

const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.?!]$/.test(words) ? "" : "."}`;

function upload(image) {
  go({ upload: uploads.push(image) - 1 }, false);
}

// Showing

function busy(on) {
  document.querySelector("main").setAttribute("aria-busy", on);
  clearTimeout(busy.timer);
  if (on) busy.timer = setTimeout(() => { find("progress").hidden = false; }, 200); // most answers are quicker
  else find("progress").hidden = true;
}

function render(answer, next) {
  problem.hidden = true;
  const found = answer.results;
  const old = new Map([...results.children].map((each) => [each.dataset.id, each]));
  const best = Math.max(...found.map((each) => each.score ?? 0), 1e-6);
  // Images that stay keep their element: they don't flicker, and keep the focus.
  results.replaceChildren(...found.map((each) => {
    const card = old.get(each.id) ?? makeCard(each);
    old.delete(each.id); // an image that is there twice has two elements
    fillCard(card, each, best);
    return card;
  }));
  more.hidden = found.length < top_ || top_ >= MOST || found.length >= answer.images;
  showQuery(answer.query, next);
  status.textContent = describe(found, answer.images, next);
  document.title = next.text ? `${next.text}: picture search` : "Picture search";
}

function describe(found, images, next) {
  const all = images.toLocaleString("en");
  if (!images) return "The gallery has no pictures.";
  if (!Object.keys(next).length) {
    return found.length < images ? `${all} pictures. Here are some of them.` : `${all} pictures`;
  }
  const to = next.text ? `“${next.text}”` : "this picture";
  const best = found.length ? `, best score ${found[0].score.toFixed(3)}` : "";
  return `The ${found.length} of ${all} pictures nearest to ${to}${best}`;
}

function makeCard(result) {
  const card = document.createElement("li");
  card.dataset.id = result.id;
  const link = document.createElement("a");
  const image = Object.assign(document.createElement("img"), { loading: "lazy", decoding: "async" });
  image.src = result.thumbnail;
  const facts = document.createElement("span");
  facts.className = "facts";
  const bar = Object.assign(document.createElement("span"), { className: "bar" });
  const score = Object.assign(document.createElement("span"), { className: "score" });
  const name = Object.assign(document.createElement("span"), { className: "name" });
  facts.append(score, name);
  link.append(image, bar, facts);
  card.append(link);
  return card;
}

function fillCard(card, result, best) {
  const link = card.firstElementChild;
  link.href = `?similar=${result.id}`;
  link.dataset.go = result.id;
  link.title = [result.name, ...result.captions].join("\n");
  const [image, bar, facts] = link.children;
  image.alt = ""; // the words below it are of the same link
  const shape = Math.min(Math.max(result.width / result.height, 0.5), 3);
  card.style.setProperty("--shape", shape.toFixed(4));
  const scored = result.score !== null;
  bar.hidden = !scored;
  bar.style.setProperty("--share", `${scored ? Math.max(0, 100 * result.score / best).toFixed(1) : 0}%`);
  const [score, name] = facts.children;
  score.hidden = !scored;
  score.textContent = scored ? result.score.toFixed(3) : "";
  name.textContent = result.captions[0] ?? result.name;
}

function showQuery(asked, next) {
  const section = find("query");
  const uploaded = next.upload !== undefined;
  section.hidden = !uploaded && !asked;
  if (section.hidden) return;
  const source = uploaded ? preview(next.upload) : asked.thumbnail;
  if (find("asked").getAttribute("src") !== source) find("asked").src = source;
  for (const link of [find("original"), find("open")]) link.href = uploaded ? source : asked.image;
  find("asked-title").textContent = uploaded ? uploads[next.upload].name || "Your picture" : asked.name;
  find("asked-captions").replaceChildren(...(asked?.captions ?? []).map(
    (caption) => Object.assign(document.createElement("li"), { textContent: caption })
  ));
}

function preview(number) {
  if (!previews.has(number)) previews.set(number, URL.createObjectURL(uploads[number]));
  return previews.get(number);
}

function complain(error) {
  problem.hidden = false;
  problem.firstElementChild.textContent = error.message;
  status.textContent = "";
}

/** The image beside, above or below another on the screen. */
function neighbour(link, key) {
  const links = [...results.querySelectorAll("a")];
  const place = links.indexOf(link);
  if (key === "ArrowRight") return links[place + 1];
  if (key === "ArrowLeft") return links[place - 1];
  const box = (each) => each.getBoundingClientRect();
  const { top, left, width } = box(link);
  const down = key === "ArrowDown";
  const beyond = links.filter((each) => (down ? box(each).top > top + 1 : box(each).top < top - 1));
  if (!beyond.length) return null;
  const row = down ? Math.min(...beyond.map((each) => box(each).top)) : Math.max(...beyond.map((each) => box(each).top));
  const distance = (each) => Math.abs(box(each).left + box(each).width / 2 - left - width / 2);
  return beyond.filter((each) => Math.abs(box(each).top - row) < 1).sort((a, b) => distance(a) - distance(b))[0];
}

// Images that are dropped anywhere

function dropping() {
  const over = find("over");
  let depth = 0;
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!carriesFile(event)) return;
    depth += 1;
    over.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!carriesFile(event)) return;
    depth = Math.max(0, depth - 1);
    over.hidden = depth === 0;
  });
  addEventListener("dragover", (event) => { if (carriesFile(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    depth = 0;
    over.hidden = true;
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
}

// The token: from the address, which then forgets it, or from whoever sits here; kept until the tab is closed.

function takeToken() {
  const address = new URL(location);
  const inHash = new URLSearchParams(address.hash.slice(1));
  const token = inHash.get("token") ?? address.searchParams.get("token");
  if (!token) return;
  sessionStorage.setItem("token", token);
  address.searchParams.delete("token");
  address.hash = "";
  history.replaceState(history.state, "", address.pathname + address.search);
}

function askForToken(wrong) {
  const dialog = find("token");
  if (dialog.open) return;
  if (wrong) find("token-hint").textContent = "That was not the right one. Whoever started it has it.";
  const input = dialog.querySelector("input");
  dialog.showModal();
  dialog.addEventListener("close", () => {
    if (input.value) sessionStorage.setItem("token", input.value.trim());
    input.value = "";
    show(query, top_);
  }, { once: true });
}
