"use strict";
// The page's pictures, settings and results. All of it lives in this tab: the server keeps nothing.
const $ = id => document.getElementById(id);
const GONE = "The program behind this page does not answer. Is `osdhuman app` still running?";
const items = [];          // pictures, in the order of the queue
let model = null;          // what /api/model says
let current = null;        // the picture that is shown
let running = false;       // whether the queue is being worked on
let numbers = 0;
let painting = false;      // whether a mask is painted
let pen = {x: .5, y: .5, down: false};
let strokeCount = 0;       // numbers the states of all masks; 0 is one without a stroke

// ---- words ----------------------------------------------------------------------------------
const STATES = {
  looking: "being looked at", ready: "ready", waiting: "waiting", working: "being restored",
  done: "restored", failed: "not restored", refused: "cannot be restored",
};
const say = text => { $("status").textContent = text };
const seconds = s => s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`;
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function phaseWords(told) {
  const so = `${seconds(told.seconds)} so far`;
  if (told.state === "waiting") return told.ahead ? `Waiting: ${plural(told.ahead, "picture")} of others before this one.` : "Waiting for its turn.";
  if (told.state === "compiling") {
    const more = told.seconds > told.expected ? "longer than thought" : `about ${seconds(told.expected)}`;
    return `Compiling for this size, once, ${more} (${so}).`;
  }
  if (told.state === "restoring") return told.total ? `Restoring: ${told.unit} ${told.done} of ${told.total}.` : `Restoring (${so}).`;
  return "Sending the picture.";
}

// ---- the server -----------------------------------------------------------------------------
async function ask(address, options) {
  let answer;
  try { answer = await fetch(address, options) }
  catch (error) { if (error.name === "AbortError") throw error; throw new Error(GONE) }
  if (answer.ok) return answer;
  let words = "";
  try { words = (await answer.json()).error } catch { /* no words: the status must do */ }
  throw new Error(words || `The program behind this page answered ${answer.status}.`);
}

function form(item, settings = {}, mask = null) {
  const made = new FormData();
  for (const [name, value] of Object.entries(settings)) made.append(name, value);
  made.append("picture", item.file, item.name);
  if (mask) made.append("mask", mask, "mask.png");
  return made;
}

// ---- settings -------------------------------------------------------------------------------
function drawControls() {
  const box = $("controls");
  box.replaceChildren();
  for (const control of model.controls) {
    const row = document.createElement("div"), label = document.createElement("label");
    const field = document.createElement(control.kind === "choice" ? "select" : control.kind === "text" ? "textarea" : "input");
    field.id = field.name = control.name;
    label.htmlFor = field.id;
    label.append(control.label);
    if (control.kind === "choice") for (const choice of control.choices) field.append(new Option(choice, choice));
    else if (control.kind !== "text") {
      field.type = control.kind === "slider" ? "range" : "number";
      Object.assign(field, {min: control.least, max: control.most, step: control.step});
    }
    if (control.kind === "slider") {
      const shown = document.createElement("output");
      shown.htmlFor = field.id;
      label.append(shown);
      field.addEventListener("input", () => { shown.textContent = field.value });
    }
    row.append(label, field);
    if (control.help) {
      const help = document.createElement("small");
      help.id = `${field.id}-help`;
      help.textContent = control.help;
      field.setAttribute("aria-describedby", help.id);
      row.append(help);
    }
    box.append(row);
  }
  resetControls();
}

function resetControls() {
  for (const control of model.controls) {
    const field = $("controls").elements[control.name];
    field.value = control.default;
    // As the browser has it, which rounds: what is not touched is left to the model.
    field.dataset.own = field.value;
    field.dispatchEvent(new Event("input"));
  }
  settingsChanged();
}

function settings() {
  const fields = model.controls.map(control => $("controls").elements[control.name]);
  return Object.fromEntries(fields.filter(field => field.value !== field.dataset.own).map(field => [field.name, field.value]));
}
const settingsWords = made => model.controls.filter(control => control.name in made)
  .map(control => `${control.label.toLowerCase()} ${made[control.name]}`).join(", ") || "the model's own settings";

function settingsChanged() {
  const quality = $("controls").elements.quality, kind = $("controls").elements.format;
  // PNG has none.
  if (quality && kind) quality.closest("div").hidden = kind.value === "png";
  show();
}

// ---- the queue ------------------------------------------------------------------------------
function add(files) {
  const wanted = [...files].filter(file => model.suffixes.some(suffix => file.name.toLowerCase().endsWith(suffix)));
  const others = files.length - wanted.length;
  for (const file of wanted) {
    const item = {key: `p${++numbers}`, file, name: file.name, state: "looking", error: "", result: null, strokes: 0};
    if (file.size > model.max_file_size) {
      item.state = "refused";
      item.error = `The file has more than ${Math.round(model.max_file_size / 2 ** 20 * 10) / 10} MiB.`;
    }
    items.push(item);
    drawItem(item);
  }
  if (wanted.length && !current) select(items[items.length - wanted.length]);
  say(`${plural(wanted.length, "picture")} added${others ? `; ${plural(others, "file")} of other kinds left out` : ""}.`);
  lookAtAll();
}

let looking = false;
async function lookAtAll() {
  if (looking) return;
  looking = true;
  for (let item; (item = items.find(one => one.state === "looking"));) {
    try {
      Object.assign(item, await (await ask("api/look", {method: "POST", body: form(item)})).json());
      item.state = "ready";
    } catch (error) {
      item.state = "refused";
      item.error = error.message;
    }
    drawItem(item);
    if (item === current) show();
  }
  looking = false;
  show();
}

function drawItem(item) {
  if (!items.includes(item)) return;
  let row = $(item.key);
  if (!row) {
    row = document.createElement("li");
    row.id = item.key;
    row.innerHTML = '<button class="pick"><img class="thumb" alt=""><span class="about"><span class="file"></span><span class="state"></span></span></button><button class="remove">×</button>';
    row.querySelector(".file").textContent = item.name;
    row.querySelector(".pick").addEventListener("click", () => select(item));
    const remove = row.querySelector(".remove");
    remove.setAttribute("aria-label", `Remove ${item.name}`);
    remove.addEventListener("click", () => drop(item));
    $("queue").append(row);
  }
  row.className = {refused: "failed"}[item.state] || item.state;
  row.querySelector(".state").textContent = STATES[item.state];
  row.querySelector(".pick").setAttribute("aria-current", item === current);
  const thumb = row.querySelector(".thumb");
  if (item.preview && thumb.getAttribute("src") !== item.preview) thumb.src = item.preview;
}

function select(item) {
  const before = current;
  current = item;
  $("share").value = 50;
  pen.down = false;
  if (before) drawItem(before);
  drawItem(item);
  show();
}

function drop(item) {
  const at = items.indexOf(item);
  item.stop?.abort();
  forget(item);
  items.splice(at, 1);
  $(item.key).remove();
  if (item === current) {
    current = null;
    const next = items[Math.min(at, items.length - 1)];
    if (next) select(next); else show();
  }
  // The keyboard stays where it was.
  const next = items[Math.min(at, items.length - 1)];
  (next ? $(next.key).querySelector(".remove") : $("choose")).focus();
  say(`${item.name} removed.`);
  show();
}

function forget(item) {
  if (item.result) URL.revokeObjectURL(item.result.address);
  item.result = null;
}

// ---- restoring ------------------------------------------------------------------------------
const open = () => items.filter(item => ["ready", "failed"].includes(item.state));

function enqueue(chosen) {
  const made = settings();
  for (const item of chosen) {
    // From here on the result of before is gone, whatever becomes of this one.
    forget(item);
    Object.assign(item, {state: "waiting", error: "", asked: made});
    drawItem(item);
  }
  say(`Restoring ${plural(chosen.length, "picture")}.`);
  show();
  work();
}

async function work() {
  if (running) return;
  running = true;
  let done = 0, failed = 0;
  for (let item; (item = items.find(one => one.state === "waiting"));) {
    await restore(item);
    if (item.state === "done") done += 1;
    if (item.state === "failed") failed += 1;
    const left = items.filter(one => one.state === "waiting").length;
    say(`${item.name}: ${STATES[item.state]}${left ? `; ${left} to go` : ""}.`);
    drawItem(item);
    show();
  }
  running = false;
  if (done + failed > 1) say(`${plural(done, "picture")} restored${failed ? `, ${failed} not: see why in the queue` : ""}.`);
  show();
}

async function restore(item) {
  const ticket = crypto.getRandomValues(new Uint32Array(4)).join("-");
  item.stop = new AbortController();
  item.state = "working";
  item.told = {state: "sending"};
  drawItem(item);
  show();
  const timer = setInterval(() => watch(item, ticket), 500);
  try {
    const strokes = item.strokes;
    const body = form(item, item.asked, await maskOf(item));
    const request = {method: "POST", body, signal: item.stop.signal};
    const answer = await ask(`api/restore?ticket=${ticket}`, request);
    const blob = await answer.blob();
    const name = decodeURIComponent(answer.headers.get("content-disposition").split("''").pop());
    if (item.state !== "working" || !items.includes(item)) return;
    const remarks = decodeURIComponent(answer.headers.get("remarks") || "");
    item.result = {blob, name, remarks, address: URL.createObjectURL(blob), made: item.asked, strokes};
    item.state = "done";
  } catch (error) {
    item.state = error.name === "AbortError" ? "ready" : "failed";
    item.error = error.name === "AbortError" ? "" : error.message;
  } finally {
    clearInterval(timer);
    item.stop = null;
  }
}

async function watch(item, ticket) {
  try {
    const told = await (await ask(`api/progress?ticket=${ticket}`)).json();
    if (item.state !== "working" || told.state === "unknown") return;
    item.told = told;
    if (item === current) showProgress(item);
  } catch { /* the answer to the restoration tells what is wrong */ }
}

function stop() {
  for (const item of items.filter(one => one.state === "waiting")) {
    item.state = "ready";
    drawItem(item);
  }
  items.find(item => item.state === "working")?.stop.abort();
  say("Stopped.");
  show();
}

// ---- what is shown --------------------------------------------------------------------------
function show() {
  const item = current, result = item?.result;
  $("name").textContent = item ? item.name : items.length ? "No picture chosen" : "No picture yet";
  $("facts").textContent = item ? factsOf(item) : "Choose pictures, look at them here, and restore them.";
  $("stage").hidden = !item?.preview;
  if (item?.preview) showPictures(item);
  showProgress(item);
  $("problem").hidden = !item?.error;
  $("problem").textContent = item?.error ? `${STATES[item.state][0].toUpperCase()}${STATES[item.state].slice(1)}: ${item.error}` : "";
  const left = open(), busy = items.some(one => ["waiting", "working"].includes(one.state));
  const results = items.filter(one => one.result);
  $("restore").disabled = !item || !["ready", "failed", "done"].includes(item.state);
  $("restore").textContent = result ? "Restore again" : "Restore this picture";
  $("restore-all").disabled = !left.length;
  $("restore-all").textContent = left.length ? `Restore all (${left.length})` : "Restore all";
  $("stop").hidden = !busy;
  $("painting").disabled = !item?.preview;
  $("painting").setAttribute("aria-pressed", painting);
  $("painting").textContent = painting ? "Done painting" : item?.strokes ? "Painted: change" : "Paint where";
  $("brush").hidden = !painting || !item?.preview;
  $("download").disabled = !result;
  $("download").textContent = result ? `Download ${result.name}` : "Download this picture";
  $("zip").disabled = !results.length;
  $("zip").textContent = results.length ? `Download all as a zip (${results.length})` : "Download all as a zip";
}

function factsOf(item) {
  const size = item.width ? `${item.width} × ${item.height} pixels` : "";
  const note = item.note ? `Note: ${item.note}.` : "";
  let made = "";
  if (item.result) {
    const {made: used, strokes, remarks} = item.result;
    const same = JSON.stringify(used) === JSON.stringify(settings()) && strokes === item.strokes;
    made = `Restored with ${settingsWords(used)}${strokes ? ", where it was painted" : ""}${same ? "" : "; the settings are others now"}.`;
    if (remarks) made += ` Note: ${remarks}.`;
  }
  return [size && `${size}.`, note, made].filter(Boolean).join(" ");
}

function showPictures(item) {
  const both = Boolean(item.result) && !painting, frame = $("frame");
  frame.style.setProperty("--shape", `${item.width} / ${item.height}`);
  frame.style.setProperty("--most", `${2 * item.width}px`);
  frame.style.setProperty("--tall", item.width / item.height);
  if ($("before").getAttribute("src") !== item.preview) $("before").src = item.preview;
  $("before").alt = both ? `${item.name} before` : item.name;
  $("after").alt = both ? `${item.name} restored` : "";
  if (both && $("after").getAttribute("src") !== item.result.address) $("after").src = item.result.address;
  if (!both) $("after").removeAttribute("src");
  for (const id of ["after", "line", "share", "tag-before", "tag-after"]) $(id).hidden = !both;
  for (const id of ["paint", "ring"]) $(id).hidden = !painting;
  if (painting) $("paint").replaceChildren(canvasOf(item)); else $("paint").replaceChildren();
  showShare();
}

function showShare() {
  const both = Boolean(current?.result) && !painting, share = both ? Number($("share").value) : 100;
  $("frame").style.setProperty("--share", `${share}%`);
  $("share").setAttribute("aria-valuetext", `${share} % before, ${100 - share} % after`);
}

function showProgress(item) {
  const working = item?.state === "working";
  $("doing").hidden = !(working || item?.state === "waiting");
  if (!item) return;
  const told = working ? item.told : {};
  $("phase").textContent = working ? phaseWords(told) : "Waiting for the pictures before it.";
  const bar = $("bar");
  if (told.state === "restoring" && told.total) { bar.max = told.total; bar.value = told.done }
  else bar.removeAttribute("value");
}

// ---- where to restore: a mask, painted over the picture ---------------------------------------

function canvasOf(item) {
  if (!item.mask) {
    const scale = Math.min(1, 1600 / Math.max(item.width, item.height));
    item.mask = Object.assign(document.createElement("canvas"), {width: Math.max(1, Math.round(item.width * scale)), height: Math.max(1, Math.round(item.height * scale))});
  }
  return item.mask;
}

// The brush's breadth is a part of the picture's width, in percent.
const breadth = canvas => Number($("size").value) / 100 * canvas.width;

function stroke(x, y) {
  const canvas = canvasOf(current), pencil = canvas.getContext("2d");
  pencil.globalCompositeOperation = document.querySelector("[name=tool]:checked").value;
  pencil.strokeStyle = "#ff2d9b";
  pencil.lineCap = pencil.lineJoin = "round";
  pencil.lineWidth = breadth(canvas);
  pencil.beginPath();
  pencil.moveTo(pen.x * canvas.width, pen.y * canvas.height);
  pencil.lineTo(x * canvas.width, y * canvas.height);
  pencil.stroke();
  current.strokes = ++strokeCount;
}

function movePen(x, y, down) {
  x = Math.min(1, Math.max(0, x)), y = Math.min(1, Math.max(0, y));
  if (down) {
    if (!pen.down) pen = {x, y, down};
    stroke(x, y);
  }
  pen = {x, y, down};
  showRing();
}

function showRing() {
  const ring = $("ring");
  ring.style.setProperty("--x", `${pen.x * 100}%`);
  ring.style.setProperty("--y", `${pen.y * 100}%`);
  ring.style.setProperty("--size", `${$("size").value}%`);
  ring.className = pen.down ? "down" : "";
}

async function maskOf(item) {
  if (!item.strokes) return null;
  const whole = Object.assign(document.createElement("canvas"), {width: item.width, height: item.height}), pencil = whole.getContext("2d");
  // White where it is painted, black beside it.
  pencil.drawImage(item.mask, 0, 0, item.width, item.height);
  for (const [how, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
    pencil.globalCompositeOperation = how;
    pencil.fillStyle = colour;
    pencil.fillRect(0, 0, item.width, item.height);
  }
  return new Promise(made => whole.toBlob(made, "image/png"));
}

function atPointer(event) {
  const box = $("paint").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}
$("paint").addEventListener("pointerdown", event => { $("paint").setPointerCapture(event.pointerId); movePen(...atPointer(event), true) });
$("paint").addEventListener("pointermove", event => movePen(...atPointer(event), event.buttons > 0));
$("paint").addEventListener("pointerup", event => { movePen(...atPointer(event), false); show() });
$("paint").addEventListener("keydown", event => {
  const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!way && event.key !== " ") return;
  event.preventDefault();
  const step = Number($("size").value) / 200, tall = current.width / current.height;
  if (way) movePen(pen.x + way[0] * step, pen.y + way[1] * step * tall, pen.down);
  else { movePen(pen.x, pen.y, !pen.down); say(pen.down ? "The brush is down." : "The brush is up.") }
});
$("painting").addEventListener("click", () => { painting = !painting; pen.down = false; showRing(); show(); if (painting) $("paint").focus() });
$("size").addEventListener("input", showRing);
$("clear").addEventListener("click", () => { current.mask = null; current.strokes = 0; say("Nothing is painted: all is restored."); show() });

// ---- downloads ------------------------------------------------------------------------------
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const TABLE = Uint32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
function crc32(bytes) {
  let sum = -1;
  for (let i = 0; i < bytes.length; i++) sum = TABLE[(sum ^ bytes[i]) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

// PKWARE's APPNOTE 4.3: each file as it is, for pictures are packed already, then the directory.
async function zipOf(results) {
  const parts = [], directory = [];
  let at = 0;
  const names = new Set();
  for (const {blob, name} of results) {
    let own = name;
    for (let n = 2; names.has(own); n++) own = name.replace(/(\.[^.]*)$/, ` (${n})$1`);
    names.add(own);
    const sum = crc32(new Uint8Array(await blob.arrayBuffer()));
    const title = new TextEncoder().encode(own), head = new DataView(new ArrayBuffer(30));
    // Version 2.0, names in UTF-8, stored; of 1980, for nobody knows when it was taken.
    [[0, 0x04034b50], [14, sum], [18, blob.size], [22, blob.size]].forEach(([o, v]) => head.setUint32(o, v, true));
    [[4, 20], [6, 0x800], [8, 0], [10, 0], [12, 0x21], [26, title.length]].forEach(([o, v]) => head.setUint16(o, v, true));
    const entry = new DataView(new ArrayBuffer(46));
    entry.setUint32(0, 0x02014b50, true);
    entry.setUint16(4, 20, true);
    new Uint8Array(entry.buffer, 6, 26).set(new Uint8Array(head.buffer, 4, 26));
    entry.setUint32(42, at, true);
    parts.push(head, title, blob);
    directory.push(entry, title);
    at += 30 + title.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  if (at + size >= 2 ** 32) throw new Error("All together have more than 4 GB, which a zip cannot hold: download them one by one.");
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  [[8, results.length], [10, results.length]].forEach(([o, v]) => end.setUint16(o, v, true));
  [[12, size], [16, at]].forEach(([o, v]) => end.setUint32(o, v, true));
  return new Blob([...parts, ...directory, end], {type: "application/zip"});
}

// ---- what a person does ---------------------------------------------------------------------
$("choose").addEventListener("click", () => $("files").click());
$("choose-folder").addEventListener("click", () => $("folder").click());
for (const id of ["files", "folder"]) $(id).addEventListener("change", event => {
  const chosen = [...event.target.files];
  event.target.value = "";
  add(chosen);
});
$("controls").addEventListener("input", settingsChanged);
$("controls").addEventListener("submit", event => event.preventDefault());
$("reset").addEventListener("click", resetControls);
$("restore").addEventListener("click", () => { painting = false; enqueue([current]) });
$("restore-all").addEventListener("click", () => enqueue(open()));
$("stop").addEventListener("click", stop);
$("share").addEventListener("input", showShare);
$("download").addEventListener("click", () => save(current.result.blob, current.result.name));
$("zip").addEventListener("click", async () => {
  try { save(await zipOf(items.filter(item => item.result).map(item => item.result)), "restored.zip") }
  catch (error) { say(error.message) }
});

// A folder that is dropped is walked, each of its folders too.
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((found, failed) => entry.file(found, failed))];
  const reader = entry.createReader(), inside = [];
  for (let some; (some = await new Promise((found, failed) => reader.readEntries(found, failed))).length;) inside.push(...some);
  return (await Promise.all(inside.map(filesOf))).flat();
}
addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over") });
addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over") });
addEventListener("drop", async event => {
  event.preventDefault();
  document.body.classList.remove("over");
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
  try { add((await Promise.all(entries.map(filesOf))).flat()) }
  catch { say("What was dropped cannot be read.") }
});
// Results live in this tab alone: who closes it by mistake is asked.
addEventListener("beforeunload", event => { if (items.some(item => item.result || item.state === "working")) event.preventDefault() });

(async () => {
  if (matchMedia("(max-width: 760px)").matches) $("settings").open = false;
  try { model = await (await ask("api/model")).json() }
  catch (error) { say(error.message); return }
  $("kinds").textContent = `Kinds: ${model.kinds}.`;
  $("files").accept = model.suffixes.join(",");
  for (const words of model.words) $("words").append(Object.assign(document.createElement("li"), {textContent: words}));
  $("card").innerHTML = model.card;
  drawControls();
  document.body.dataset.ready = "";
})();
