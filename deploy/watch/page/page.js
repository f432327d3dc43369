// The page of deploy/watch/page: draws what the runner sends, sends what a person wishes.
// It never claims more than it knows: silence of the runner is STALE, then OFFLINE, on its own clock.
"use strict";

const STALE_MS = 1000, OFFLINE_MS = 3000;
const byId = (name) => document.getElementById(name);
const say = (name, text) => { const e = byId(name); if (e.textContent !== String(text)) e.textContent = text; };
const number = (value) => (value ?? 0).toLocaleString("en").replaceAll(",", "\u202f");

let socket = null, tries = 0;
let newest = null;          // header of the newest message
let shown = null;           // {sequence, stream, size} of the picture on the screen
let heard = 0;              // when the newest message came, on the browser's clock
let ended = false, lost = "connecting";
let watched = 0, touched = {};   // touched: slider -> when a hand last moved it
const latencies = [];
const canvas = byId("picture"), pen = canvas.getContext("2d", { alpha: false });

function connect() {
  socket = new WebSocket(new URL("live", location.href).href.replace(/^http/, "ws"));
  socket.binaryType = "arraybuffer";
  const own = socket;
  socket.onopen = () => {
    tries = 0; shown = null;  // a new runner counts from one again
    if (newest) newest.number = 0;
    wish({ watch: watched });
  };
  socket.onmessage = (event) => receive(event.data, own);
  socket.onclose = (event) => {
    lost = ended ? "the run has ended" : event.reason || "no connection to the runner";
    socket = null;
    setTimeout(connect, Math.min(5000, 300 * 2 ** tries++) * (0.5 + Math.random() / 2));
    showState();
  };
}

function wish(words) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(words));
}

async function receive(data, from) {
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const picture = new Uint8Array(data, 4 + length);
  if (picture.length) {
    try {
      const image = await createImageBitmap(new Blob([picture], { type: "image/jpeg" }));
      if (header.stream === watched && from === socket) draw(image, header);
      image.close();
    } catch (error) { say("answer", `a picture could not be shown: ${error.message}`); }
  }
  wish({ drawn: header.number });
  if (from !== socket && socket || header.stream !== watched || newest && header.number < newest.number) return;
  newest = header; heard = performance.now(); ended = header.ended;
  show();
}

function draw(image, header) {
  if (shown && shown.stream === header.stream && header.sequence <= shown.sequence) return;
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width; canvas.height = image.height;
    const aspect = header.shown.aspect ?? 1;  // pixels that are not square are shown as wide as meant
    canvas.style.aspectRatio = aspect === 1 ? "" : `${image.width * aspect} / ${image.height}`;
  }
  pen.drawImage(image, 0, 0);
  const again = shown && shown.frame === header.shown.frame_id;  // greyed, or drawn anew
  shown = { sequence: header.sequence, stream: header.stream, frame: header.shown.frame_id };
  canvas.dataset.frame = shown.frame; canvas.dataset.sequence = shown.sequence;
  if (!again) latencies.push(header.shown.latency_ms.last ?? 0);
  if (latencies.length > 120) latencies.shift();
}

function show() {
  const status = newest.streams[watched];
  showState(); showStreams(); showFinding(status); showNumbers(status); showControls(); showPlayer();
  const alarms = new Map();  // text -> numbers of the streams that say it
  newest.streams.forEach((each, index) => each.alarms.forEach((text) => alarms.set(text, [...(alarms.get(text) ?? []), index + 1])));
  const all = newest.streams.length;
  byId("alarms").hidden = !alarms.size;
  say("alarms", [...alarms].map(([text, of]) => `⚠ ${of.length < all ? `stream ${of.join(", ")}: ` : ""}${text}`).join("   "));
  byId("recording").hidden = !status.recording;
  say("engine", [status.backend, sizes(status)].filter(Boolean).join(" · "));
  if (newest.answer) say("answer", newest.answer);
}

function sizes(status) {  // of the frames, and of the endoscopic picture where it is not all of them
  if (!status.size) return "";
  const [height, width] = status.size, [, , across, down] = status.picture ?? [0, 0, width, height];
  return `${width} × ${height}${across < width || down < height ? `, picture ${across} × ${down}` : ""}`;
}

function stateNow() {  // [state, reason], by what the runner said and how long ago it said it
  const silent = performance.now() - heard;
  if (!newest) return ["OFFLINE", lost];
  if (ended) return ["OFFLINE", newest.streams[watched].reason || "the run has ended"];
  if (!socket || silent > OFFLINE_MS) return ["OFFLINE", socket ? "the runner is silent" : lost];
  const status = newest.streams[watched];
  if (newest.player) return ["REPLAY", `recorded as ${status.state}${status.reason && `: ${status.reason}`}`];
  if (silent > STALE_MS && status.state !== "OFFLINE") return ["STALE", "the runner is silent"];
  return [status.state, status.quality !== "good" && status.state === "LIVE" ? `${status.quality}: not segmented` : status.reason];
}

function showState() {
  const [state, reason] = stateNow();
  const status = newest && newest.streams[watched];
  document.body.dataset.state = state;
  byId("frame").classList.toggle("lost", state === "STALE" || state === "OFFLINE");
  say("state", state);
  let age = "";
  if (status && status.age_s !== null && (state === "STALE" || state === "OFFLINE") && shown) {
    age = `picture is ${(status.age_s + (performance.now() - heard) / 1000).toFixed(1)} s old`;
  }
  say("reason", reason || (status && state === "LIVE" ? status.source : age || "\u00a0"));
  say("veil-state", state); say("veil-text", [age, reason].filter(Boolean).join(" · "));
  document.title = `${state} · Med-DisSeg`;
}

function showStreams() {
  const bar = byId("streams");
  if (bar.children.length !== newest.streams.length) {
    bar.replaceChildren(...newest.streams.map((status, index) => {
      const button = document.createElement("button");
      button.append(document.createElement("b"), document.createElement("span"));
      button.title = `${status.source} (${index + 1})`;
      button.onclick = () => watch(index);
      return button;
    }));
  }
  newest.streams.forEach((status, index) => {
    const button = bar.children[index], [state, name] = button.children;
    button.setAttribute("aria-pressed", index === watched);
    button.dataset.state = status.state;
    state.style.color = "var(--state)"; state.textContent = index === watched ? "" : status.state;
    state.hidden = index === watched;
    name.textContent = (newest.streams.length > 1 ? `${index + 1}  ` : "") + status.source.split("/").filter(Boolean).pop();
  });
}

function watch(stream) {
  if (!newest || stream >= newest.streams.length || stream === watched) return;
  watched = stream; shown = null; latencies.length = 0;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  wish({ watch: stream }); show();
}

function showFinding(status) {
  const now = newest.player ? status.state : stateNow()[0];
  const on = status.alarm && now === "LIVE", tracks = on ? status.tracks : [];  // never an old picture's
  const watching = now === "LIVE" && status.quality === "good";  // else "no detection" would be a claim
  byId("finding").classList.toggle("on", on);
  say("count", !on ? (watching ? "No detection" : "Not segmented") : !tracks.length ? "Detection just now" : `${tracks.length} detection${tracks.length > 1 ? "s" : ""}`);
  const place = status.picture ?? (status.size ? [0, 0, status.size[1], status.size[0]] : [0, 0, 1, 1]);
  const area = place[2] * place[3];
  const lines = tracks.slice(0, 2).map((track) =>
    `#${track.id} · ${track.label ? `${track.label.name} · ` : ""}${(100 * track.confidence).toFixed(0)} % sure · ${(100 * track.area / area).toFixed(1)} % of picture · ${clock(track.first_seen_s)}`);
  if (tracks.length > 2) lines.push(`and ${tracks.length - 2} more`);
  const list = byId("tracks");
  if (list.dataset.text === lines.join("\n")) return;
  list.dataset.text = lines.join("\n");
  list.replaceChildren(...lines.map((text, index) => {
    const item = document.createElement("li"), label = tracks[index]?.label;
    item.textContent = text;
    if (label) item.style.borderLeft = `4px solid rgb(${label.color.join(" ")})`, item.style.paddingLeft = "6px";
    return item;
  }));
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function showNumbers(status) {
  const ms = status.latency_ms, round = (value) => value === undefined ? "–" : value.toFixed(value < 9.95 ? 1 : 0);
  say("latency", round(ms.last)); say("p50", round(ms.p50)); say("p99", round(ms.p99));
  say("fps", status.fps.toFixed(status.fps < 9.95 ? 1 : 0));
  say("browser", newest.browser_ms === null ? "–" : `+${newest.browser_ms.toFixed(0)}`);
  for (const key of ["in", "processed", "dropped", "failed"]) say(key, number(status.frames[key]));
  const most = Math.max(1, ...latencies), step = 240 / Math.max(1, latencies.length - 1);
  byId("spark").firstElementChild.setAttribute("points", latencies.map((value, i) => `${(i * step).toFixed(1)},${(27 - 25 * value / most).toFixed(1)}`).join(" "));
}

const inWords = {
  threshold: (value) => value.toFixed(2),
  opacity: (value) => `${Math.round(100 * value)} %`,
  hold_off: (value) => value === 1 ? "1 frame" : `${value} frames`,
};

function showControls() {
  for (const [name, words] of Object.entries(inWords)) {
    const slider = byId(name), value = newest.settings[name];
    if (performance.now() - (touched[name] ?? -1e9) > 700) slider.value = value;  // not under a moving hand
    say(`${name}-value`, words(Number(slider.value)));
    slider.setAttribute("aria-valuetext", words(Number(slider.value)));
  }
  byId("ai").setAttribute("aria-checked", newest.settings.ai);
  byId("ai").lastElementChild.textContent = newest.settings.ai ? "ON" : "OFF";
}

function showPlayer() {
  const player = newest.player;
  document.body.classList.toggle("replay", Boolean(player));
  byId("player").hidden = !player;
  if (!player) return;
  const seek = byId("seek");
  seek.max = player.frames - 1;
  if (performance.now() - (touched.seek ?? -1e9) > 400) seek.value = player.position;
  say("play", player.playing ? "Pause" : "Play");
  say("place", player.text);
  const marks = byId("marks"), text = JSON.stringify(player.marks);
  if (marks.dataset.text === text) return;
  marks.dataset.text = text;
  marks.replaceChildren(...player.marks.map(([from, to]) => {
    const mark = document.createElement("i");
    mark.style.left = `${100 * from / player.frames}%`; mark.style.width = `${100 * (to - from + 1) / player.frames}%`;
    return mark;
  }));
}

async function snapshot() {
  const query = shown ? `?sequence=${shown.sequence}` : "";
  const answer = await fetch(`snapshot/${watched}.png${query}`);
  if (!answer.ok) { say("answer", await answer.text()); return; }
  const link = document.createElement("a");
  link.download = /filename="(.+)"/.exec(answer.headers.get("content-disposition"))[1];
  link.href = URL.createObjectURL(await answer.blob());
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say("answer", `saved ${link.download}`);
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else byId("frame").requestFullscreen?.();
}

for (const name of Object.keys(inWords)) {
  byId(name).addEventListener("input", (event) => {
    touched[name] = performance.now();
    say(`${name}-value`, inWords[name](Number(event.target.value)));
    wish({ set: { [name]: Number(event.target.value) } });
  });
}
const playing = () => Boolean(newest && newest.player && newest.player.playing);
byId("ai").onclick = () => newest && wish({ set: { ai: !newest.settings.ai } });
byId("snapshot").onclick = () => snapshot().catch((error) => say("answer", `no snapshot: ${error.message}`));
byId("full").onclick = fullScreen;
byId("play").onclick = () => wish({ play: !playing() });
byId("back").onclick = () => wish({ step: -1 });
byId("forward").onclick = () => wish({ step: 1 });
byId("seek").addEventListener("input", (event) => { touched.seek = performance.now(); wish({ seek: Number(event.target.value) }); });

const keys = {
  a: () => byId("ai").click(), s: () => byId("snapshot").click(), f: fullScreen,
  ",": () => byId("back").click(), ".": () => byId("forward").click(), " ": () => byId("play").click(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === " " && (!newest?.player || event.target.matches("button"))) return;  // the key of buttons
  if (keys[key]) { event.preventDefault(); keys[key](); }
  else if (/^[1-9]$/.test(key) && !event.target.matches("input")) watch(Number(key) - 1);
});

setInterval(showState, 200);
connect();
