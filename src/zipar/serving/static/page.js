// The page: a form whose fields are those of a request, the address that holds them, and what the server tells.

import * as past from "./history.js";
import { Picture, blank, latest, seconds, still } from "./picture.js";
import { settingsOf } from "./png.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["n", "seed", "guidance_scale", "temperature", "top_k", "top_p", "min_p"];
const FIELDS = ["model", "prompt", "negative_prompt", "size", "strategy", "compare", ...NUMBERS];
const OTHER = "other";
let models = []; // what the server tells of each
let running = null; // what aborts the request, while there is one
let shown = []; // the pictures
let columns = 0; // strategies of them, side by side; 0 for none
let playing = 0; // what goes through the passes
let ticking = 0; // what goes through the frames of clips

const element = (tag, text, fields = {}) => Object.assign(document.createElement(tag), { textContent: text }, fields);
const button = (text, onclick) => element("button", text, { type: "button", onclick });
const say = (text) => { $("status").textContent = text; };
const model = () => models.find(({ id }) => id === $("model").value) ?? models[0];

// --- The server -------------------------------------------------------------------------------------------------

class Refusal extends Error {
  constructor({ message, param }, status) {
    super(message);
    Object.assign(this, { param, status });
  }
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("zipar-key");
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ message: "The server does not answer: is it running?" }, 0);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refusal(body.error ?? { message: `The server answered ${response.status}.` }, response.status);
}

async function stream(body, signal, told) {
  const response = await ask("v1/images/generations", { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = body.n ?? 1, text = "";
  for (let read; !(read = await reader.read()).done;) {
    const events = (text + read.value).split("\n\n");
    text = events.pop();
    for (const event of events.filter((each) => !each.startsWith(":"))) {
      const data = JSON.parse(event.slice(event.indexOf("data: ") + 6));
      if (data.error) throw new Refusal(data.error, 200);
      left -= data.type === "image_generation.completed";
      const bytes = Uint8Array.from(atob(data.b64_json), (byte) => byte.charCodeAt(0));
      await told(data, new Blob([bytes], { type: "image/png" }));
    }
  }
  if (left) throw new Refusal({ message: "The server ended before the picture was done: try again." }, 0);
}

// What is served, and what the address says of it.
async function load() {
  models = (await (await ask("v1/models")).json()).data.filter(({ id, root }) => id === root);
  $("key").hidden = true;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id)));
  $("models").hidden = models.length < 2;
  adapt();
  if (location.hash.length > 1) restore(addressed());
}

// What depends on the model: choices, words, and what is as by default.
function adapt() {
  const { sizes, strategies, defaults, examples, words, negative_prompt } = model();
  $("size").replaceChildren(...sizes.map((size) => new Option(size.replace("x", " × "), size)));
  const options = () => strategies.map(({ name, title, passes }) =>
    new Option(passes ? `${title}: ${passes} passes` : title, name));
  $("strategy").replaceChildren(...options(), new Option("Other…", OTHER));
  $("compare").replaceChildren(new Option("Nothing", ""), ...options(), new Option("Other…", OTHER));
  for (const [name, value] of Object.entries(defaults)) $(name).placeholder = value;
  $("negative").hidden = !negative_prompt;
  if (!negative_prompt) $("negative_prompt").value = "";
  $("prompt").placeholder = examples[0];
  $("examples").replaceChildren(...[...new Set(examples)].filter(Boolean).map((text) => button(text, () => write(text))));
  $("known").hidden = !Object.keys(words).length;
  $("words").replaceChildren(...Object.entries(words).map(([attribute, values]) => {
    const group = element("fieldset"), chips = element("div");
    chips.append(...values.map((phrases) => Object.assign(button(phrases[0], () => swap(values, phrases[0])), { phrases })));
    group.append(element("legend", attribute), chips);
    return group;
  }));
  mark();
  other();
}

// --- The form ---------------------------------------------------------------------------------------------------

const pattern = (phrase) => new RegExp(`(?<![\\p{L}\\p{N}])${phrase.replace(/[^\p{L}\p{N}]+/gu, "[^\\p{L}\\p{N}]+")}(?![\\p{L}\\p{N}])`, "iu");

function write(prompt) {
  $("prompt").value = prompt;
  mark();
  remember();
}

// Put a phrase in place of what the prompt says of the same attribute.
function swap(values, phrase) {
  const text = $("prompt").value;
  const there = values.flat().sort((a, b) => b.length - a.length).find((each) => pattern(each).test(text));
  write(there ? text.replace(pattern(there), phrase) : [text.trim(), phrase].filter(Boolean).join(text.trim() ? ", " : ""));
}

// Press the words that the prompt holds; of an attribute, the longest.
function mark() {
  for (const group of $("words").children) {
    const chips = [...group.querySelectorAll("button")];
    const held = chips.map((chip) => Math.max(0, ...chip.phrases.filter((each) => pattern(each).test($("prompt").value)).map((each) => each.length)));
    chips.forEach((chip, i) => chip.setAttribute("aria-pressed", held[i] > 0 && held[i] === Math.max(...held)));
  }
}

function other() {
  for (const name of ["strategy", "compare"]) $(`${name}_other`).hidden = $(name).value !== OTHER;
}

const valueOf = (name) => {
  const value = $(name).value.trim();
  return value === OTHER ? $(`${name}_other`).value.trim() : value;
};

// The fields that say something, as texts.
const settings = () => Object.fromEntries(FIELDS.map((name) => [name, valueOf(name)]).filter(([, value]) => value));

function restore(wanted) {
  if (wanted.model && wanted.model !== $("model").value && models.some(({ id }) => id === wanted.model)) {
    $("model").value = wanted.model;
    adapt();
  }
  for (const name of FIELDS.slice(1)) {
    const value = String(wanted[name] ?? ""), field = $(name);
    field.value = value;
    if (field.tagName !== "SELECT" || field.value === value && value) continue;
    const free = value && $(`${name}_other`);
    field.value = free ? OTHER : field.options[0].value;
    if (free) free.value = value;
  }
  $("random").checked = !wanted.seed && wanted.seed !== 0;
  $("more").open = ["negative_prompt", "temperature", "top_k", "top_p", "min_p"].some((name) => $(name).value);
  mark();
  other();
  remember();
}

function remember() {
  if (models.length) history.replaceState(null, "", `#${new URLSearchParams(settings())}`);
}

const addressed = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function complain(error) {
  if (error.status === 401) $("key").hidden = false;
  const name = error.status === 401 ? "api_key" : error.param;
  let field = name && $(name);
  if (field?.value === OTHER) field = $(`${name}_other`);
  if (!field || field.closest("[hidden]")) return void ($("error").textContent = error.message);
  if (field.closest("details")) field.closest("details").open = true;
  const note = element("div", error.message, { className: "error", id: `${name}_error` });
  note.setAttribute("role", "alert");
  field.after(note);
  field.setAttribute("aria-invalid", true);
  field.setAttribute("aria-describedby", note.id);
  field.focus();
}

function forgive() {
  $("error").textContent = "";
  document.querySelectorAll(".field .error").forEach((note) => note.remove());
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
}

// --- Pictures ---------------------------------------------------------------------------------------------------

function stage(pictures, side) {
  cancelAnimationFrame(playing);
  clearInterval(ticking);
  shown.forEach(({ link }) => URL.revokeObjectURL(link.href));
  [shown, columns] = [pictures, side];
  $("stage").dataset.columns = side > 1 ? side : { 0: 1, 1: 1, 2: 2, 4: 2 }[pictures.length] ?? 3;
  $("pictures").replaceChildren(...(pictures.length ? pictures.map((each) => each.element) : [blank()]));
  for (const id of ["replay", "verdict", "share"]) $(id).hidden = true;
  document.querySelector("[name=view]").checked = true;
  const fps = pictures[0]?.fps;
  $("whole").textContent = fps ? "Clip" : "Picture";
  let frame = 0;
  if (fps && !still.matches) ticking = setInterval(() => { frame++; shown.forEach((each) => each.play(frame)); }, 1000 / fps);
}

// On narrow screens pictures are below the fold.
function reveal() {
  const { top } = $("stage").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) $("stage").scrollIntoView();
}

// All are done: they can be gone through pass by pass.
function conclude() {
  $("pass").max = Math.max(...shown.map((each) => each.last)) + 1;
  $("pass").value = $("pass").max;
  $("replay").hidden = $("share").hidden = false;
  $("differing").hidden = columns < 2;
  if (columns > 1) {
    $("verdict").textContent = verdict();
    $("verdict").hidden = false;
  }
  redraw();
}

function verdict() {
  const [own, theirs] = [0, 1].map((column) => shown.filter((_, i) => i % 2 === column));
  const total = own.reduce((sum, each) => sum + each.tokens, 0);
  const equal = own.reduce((sum, each, i) => sum + each.equal(theirs[i]), 0);
  const cost = (pictures, name) => pictures.reduce((sum, each) => sum + each.done[name], 0);
  const [fast, slow] = cost(own, "passes") <= cost(theirs, "passes") ? [own, theirs] : [theirs, own];
  const times = (name) => (cost(slow, name) / cost(fast, name)).toFixed(1);
  const same = equal === total ? `Identical: all ${total} tokens are equal.`
    : `${equal} of ${total} tokens are equal (${Math.floor(100 * equal / total)} %).`;
  return `${same} ${fast[0].title}: ${times("passes")}× fewer passes, ${times("seconds")}× the speed.`;
}

function redraw() {
  const pass = Number($("pass").value), view = document.querySelector("[name=view]:checked").value;
  shown.forEach((each, i) => each.draw(pass, view, columns > 1 ? shown[i ^ 1] : null));
  $("passed").textContent = `Pass ${pass} of ${$("pass").max}`;
  $("pass").setAttribute("aria-valuetext", $("passed").textContent);
}

function play() {
  cancelAnimationFrame(playing);
  const most = Number($("pass").max), lasts = Math.min(6000, Math.max(1500, most * 30)), start = performance.now();
  const frame = (now) => {
    $("pass").value = Math.min(most, Math.ceil(Math.max(1, (now - start) / lasts * most)));
    redraw();
    if (now - start < lasts) playing = requestAnimationFrame(frame);
  };
  playing = requestAnimationFrame(frame);
}

const titleOf = (name) => model().strategies.find((each) => each.name === name)?.title ?? name;

async function generate() {
  if (running) return;
  forgive();
  if ($("api_key").value) sessionStorage.setItem("zipar-key", $("api_key").value);
  running = new AbortController();
  const signal = running.signal, before = shown.every((each) => each.done) ? [shown, columns] : [[], 0];
  try {
    if (!models.length) {
      await load();
    }
    if ($("random").checked) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    remember();
    const asked = settings();
    if (Math.abs(asked.seed) > Number.MAX_SAFE_INTEGER) {
      throw new Refusal({ message: `seed ${asked.seed} is too large for this page: use ${Number.MAX_SAFE_INTEGER} at most`, param: "seed" }, 400);
    }
    const { compare, ...fields } = asked, strategies = [asked.strategy, compare].filter(Boolean);
    for (const name of NUMBERS) if (name in fields && !isNaN(fields[name])) fields[name] = Number(fields[name]);
    fields.prompt ??= "";
    const { frames, fps } = model(), clip = fps ? `, clip of ${frames} frames` : "";
    const pictures = Array.from({ length: fields.n * strategies.length }, (_, i) => {
      const seed = fields.seed + Math.floor(i / strategies.length), title = titleOf(strategies[i % strategies.length]);
      return new Picture(title, `${fields.prompt}${clip}, seed ${seed}, ${title}`, fps);
    });
    $("cancel").hidden = false;
    $("generate").setAttribute("aria-disabled", true);
    stage(pictures, strategies.length);
    say("Painting…");
    reveal();
    for (const [column, strategy] of strategies.entries()) {
      const start = performance.now(); // one after the other, lest they slow each other down
      const body = { ...fields, strategy, stream: true, trace: true };
      await stream(body, signal, async (data, blob) => {
        const picture = pictures[data.image_index * strategies.length + column], { born } = data;
        const facts = `pass ${latest(born) + 1}, ${seconds((performance.now() - start) / 1000)}`;
        if (data.type === "image_generation.partial_image") return picture.progress(blob, born, facts);
        const { tokens, passes, seed } = data;
        return picture.finish({ blob, born, tokens, passes, seconds: data.seconds, seed, strategy });
      }).catch((error) => {
        throw column && error.param === "strategy" ? Object.assign(error, { param: "compare" }) : error;
      });
    }
    conclude();
    const spent = pictures.reduce((most, { done }) => Math.max(most, done.passes), 0);
    say(strategies.length > 1 ? "Done." : `Done in ${spent} passes.`);
    const kept = pictures.map(({ title, alt, fps, done }) => ({ title, alt, fps, done }));
    await past.add({ settings: asked, columns: strategies.length, pictures: kept }).then(list, () => {});
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled.");
    else {
      say("");
      if (shown.length && !shown.some((each) => each.frames.length)) {
        stage(...before);
        if (shown.length) conclude();
      }
      complain(error);
    }
  } finally {
    running = null;
    $("cancel").hidden = true;
    $("generate").removeAttribute("aria-disabled");
  }
}

// --- History ----------------------------------------------------------------------------------------------------

async function list() {
  const entries = await past.all();
  $("past").hidden = !entries.length;
  document.querySelectorAll("#entries img").forEach((image) => URL.revokeObjectURL(image.src));
  $("entries").replaceChildren(...entries.map((entry) => {
    const item = element("li"), { alt, done } = entry.pictures[0];
    const image = element("img", "", { alt, src: URL.createObjectURL(done.blob), loading: "lazy" });
    image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 256);
    const open = button("", () => show(entry));
    open.append(image);
    open.title = alt;
    const remove = button("×", async () => { await past.remove(entry.id); await list(); });
    remove.setAttribute("aria-label", `Delete ${alt}`);
    item.append(open, remove);
    return item;
  }));
}

async function show(entry) {
  if (running) return;
  forgive();
  restore(entry.settings);
  const pictures = entry.pictures.map(({ title, alt, fps }) => new Picture(title, alt, fps));
  stage(pictures, entry.columns);
  await Promise.all(pictures.map((picture, i) => picture.finish(entry.pictures[i].done)));
  conclude();
  say("From the history.");
  reveal();
}

// --- What is done with it ---------------------------------------------------------------------------------------

async function take(file) {
  const found = file && await settingsOf(file).catch(() => null);
  if (found) restore(found);
  say(found ? "These are the picture's settings." : "The file holds no settings: take a PNG that was made here.");
}

$("form").onsubmit = (event) => { event.preventDefault(); generate(); };
$("form").oninput = () => { mark(); other(); remember(); };
$("seed").oninput = () => { $("random").checked = !$("seed").value; };
$("model").onchange = () => { adapt(); remember(); };
$("cancel").onclick = () => { running?.abort(); $("prompt").focus(); };
$("play").onclick = play;
$("pass").oninput = () => { cancelAnimationFrame(playing); redraw(); };
$("replay").onchange = redraw;
$("forget").onclick = async () => { await past.clear(); await list(); $("prompt").focus(); };
$("file").onchange = () => take($("file").files[0]);
$("share").onclick = async () => {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  say(copied ? "The link is copied." : "The link is in the address bar.");
};
onhashchange = () => restore(addressed());
ondragover = (event) => event.preventDefault();
ondrop = (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); };
onkeydown = (event) => {
  const enter = event.key === "Enter" && !event.isComposing;
  if (event.key === "Escape" && running) $("cancel").click();
  else if (enter && (event.ctrlKey || event.metaKey || (event.target === $("prompt") && !event.shiftKey))) {
    event.preventDefault();
    generate();
  }
};

stage([], 0);
list().catch(() => {});
await load().catch(complain);
