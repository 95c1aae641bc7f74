// The page of `edgemllm serve`: a picture, a question box, answers, the meter, and what the cache still remembers.
const $ = (id) => document.getElementById(id);
const state = { id: decodeURIComponent(location.hash.slice(1)), info: {}, answers: [], events: null, asking: null, pictured: 0 };

// ---- talking to the server

async function call(path, { method = "GET", body, signal } = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (answer.status === 401) {
    $("key").hidden = false;
    $("key-value").focus();
  }
  if (!answer.ok) {
    const failure = await answer.json().catch(() => null);
    throw new Error(failure?.error?.message ?? `The server answered ${answer.status}`);
  }
  return answer;
}

const fetched = async (path, options) => (await call(path, options)).json();

async function* serverEvents(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1], data = /^data: (.*)$/m.exec(block)?.[1];
      if (data) yield [name, JSON.parse(data)];
    }
  }
}

function tell(text) {
  $("notice").textContent = text;
}

function doing(action) {
  return async (event) => {
    event?.preventDefault();
    try {
      tell("");
      await action(event);
    } catch (failure) {
      if (failure.name !== "AbortError") tell(failure.message);
    }
  };
}

// ---- what is shown

const clock = (seconds) => new Date(1000 * Math.max(0, seconds ?? 0)).toISOString().slice(11, 19);
const size = (bytes) => (bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function marks(className, spans, whole, { height = 30, least = 2 } = {}) {
  return spans.map(([from, to]) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect"), width = Math.max(least, (1000 * (to - from)) / whole);
    const place = { class: className, x: Math.min(1000 - width, (1000 * from) / whole), width, y: 0, height };
    for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
    return rect;
  });
}

function inWords(spans) {
  const words = spans.slice(-8).map(([from, to]) => (clock(from) === clock(to) ? clock(from) : `${clock(from)} to ${clock(to)}`));
  return `${spans.length > 8 ? "…, " : ""}${words.join(", ")}`;
}

function showTimeline() {
  const { video_s: end = 0, remembered, archive, recalled } = state.info, whole = Math.max(end, 1);
  const kept = remembered?.video ?? [], archived = archive?.video ?? [], again = recalled?.video ?? [];
  const asked = state.answers.map(({ video_s }) => [video_s, video_s]), earlier = state.answers.flatMap((answer) => answer.recalled?.video ?? []);
  $("cached").replaceChildren(...marks("kept", kept, whole), ...marks("asked", asked, whole, { height: 12, least: 4 }));
  $("archived").replaceChildren(...marks("archived", archived, whole));
  $("recalled").replaceChildren(...marks("recalled earlier", earlier, whole, { least: 4 }), ...marks("recalled", again, whole, { least: 4 }));
  for (const each of document.querySelectorAll(".of-archive")) each.toggleAttribute("hidden", !archive);
  $("end").textContent = clock(end);
  const told = [kept.length ? `At least partly in the cache: ${inWords(kept)}.` : "No video is in the cache."];
  if (archived.length) told.push(`In the archive: ${inWords(archived)}.`);
  if (again.length) told.push(`Looked at again for the newest question: ${inWords(again)}.`);
  $("timeline-text").textContent = told.join(" ");
}

function showMeter() {
  const { kv, speed, frames, dropped, lines, status, reason, archive } = state.info;
  const rows = { Status: reason ? `${status}: ${reason}` : status };
  if (kv) {
    const share = kv.budget_tokens ? kv.tokens / kv.budget_tokens : 0;
    $("cache").value = share;
    $("cache").textContent = `${Math.round(100 * share)}%`;
    Object.assign(rows, {
      Memory: `${size(kv.bytes)}, ${Math.round(kv.tokens)} of ${kv.budget_tokens ?? "any number of"} tokens per layer`,
      Evicted: `${kv.evicted_tokens} of ${kv.seen_tokens} tokens`,
      Speed: `${speed.decode_tps.toFixed(1)} tokens/s answering, ${speed.prefill_tps.toFixed(0)} tokens/s taking in`,
      Frames: `${frames} seen, ${dropped} dropped`,
      ...(lines && { Lines: `${lines} read` }),
      ...(archive && { Archive: archive.notice ? `${size(archive.bytes)}; ${archive.notice}` : size(archive.bytes) }),
    });
  }
  $("meter").replaceChildren(...Object.entries(rows).flatMap(([name, text]) => [element("dt", "", name), element("dd", "", text)]));
}

function answerItem({ question, answer, video_s, stopped, recalled }) {
  const item = element("li");
  item.append(element("p", "question", `${clock(video_s)} ${question}`), element("p", "answer", answer + (stopped ? " (stopped)" : "")));
  if (recalled?.video.length) item.append(element("p", "quiet again", `looked again at ${inWords(recalled.video)}`));
  return item;
}

function showAnswers() {
  $("answers").replaceChildren(...state.answers.toReversed().map(answerItem));
}

async function showPicture() {
  if (!state.info.frames || Date.now() - state.pictured < 400) return;
  state.pictured = Date.now();
  const answer = await call(`v1/sessions/${state.id}/snapshot.jpg`).catch(() => null); // none yet after a restart
  if (!answer) return;
  const address = URL.createObjectURL(await answer.blob());
  $("picture").onload = () => URL.revokeObjectURL(address);
  $("picture").src = address;
  $("picture").hidden = false;
}

function show(info) {
  Object.assign(state.info, info);
  $("when").textContent = state.info.source ? `${state.info.source}, ${clock(state.info.video_s)}` : clock(state.info.video_s);
  showTimeline();
  showMeter();
  void showPicture();
}

// ---- sessions

async function listSessions() {
  const [{ data }, { sources, policies, archive }, models] = await Promise.all(["v1/sessions", "v1/sources", "v1/models"].map((path) => fetched(path)));
  $("model").textContent = models.data[0].id;
  const named = ({ id, source, policy }) => new Option(`${source ?? "without a source"}, ${policy} (${id.slice(0, 4)})`, id, false, id === state.id);
  $("sessions").replaceChildren(new Option("none", ""), ...data.map(named));
  const fill = (name, first, values) => $("wish").elements[name].replaceChildren(new Option(first, ""), ...values.map((value) => new Option(value, value)));
  fill("source", "none: frames are sent", sources);
  fill("policy", "the server's", policies);
  $("wish").elements.source.value = sources[0] ?? "";
  $("archive-choice").hidden = !archive;
  return data;
}

async function open(id) {
  state.events?.abort();
  Object.assign(state, { id, info: {}, answers: [], pictured: 0 });
  location.hash = id;
  $("sessions").value = id;
  $("session").hidden = !id;
  $("picture").hidden = true;
  if (!id) return;
  const { answers, ...info } = await fetched(`v1/sessions/${id}`);
  state.answers = answers;
  $("title").textContent = `${info.source ?? "Session"}, ${info.policy}`;
  showAnswers();
  show(info);
  void listen(id);
}

async function listen(id) {
  const events = (state.events = new AbortController());
  while (!events.signal.aborted) {
    try {
      const answer = await call(`v1/sessions/${id}/events`, { signal: events.signal });
      for await (const [name, fields] of serverEvents(answer)) {
        if (name === "stats") show(fields);
        if (name === "answer") hear(fields);
        if (name === "archive") tell(fields.notice);
        if (name === "lost") tell(`${fields.source} was lost (${fields.reason}); connecting again`);
        if (name === "back") tell(`${fields.source} is back after ${fields.gap_s.toFixed(0)} s`);
        if (name === "ended" && fields.reason) tell(fields.reason);
      }
    } catch (failure) {
      if (events.signal.aborted) return;
      tell(`No connection to the session: ${failure.message}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

function hear(answer) {
  state.answers = [...state.answers.slice(-99), answer];
  $("answers").prepend(answerItem(answer)); // only what is new is read out
  showTimeline();
}

async function ask() {
  const question = $("question").value.trim(), asking = (state.asking = new AbortController());
  if (!question) return;
  $("running").replaceChildren(...answerItem({ question, answer: "…", video_s: state.info.video_s }).children);
  $("question").value = "";
  $("send").disabled = true;
  $("stop").hidden = false;
  let text = "";
  try {
    const answer = await call(`v1/sessions/${state.id}/ask`, { method: "POST", body: { question }, signal: asking.signal });
    for await (const [name, fields] of serverEvents(answer)) {
      if (name === "piece") $("running").lastChild.textContent = text += fields.text;
      if (name === "error") throw new Error(fields.error.message);
    }
  } finally {
    $("running").replaceChildren();
    $("send").disabled = false;
    $("stop").hidden = true;
  }
}

async function begin() {
  const { source, policy, kv_budget, fps, question, every, live, archive } = $("wish").elements;
  const given = { source: source.value, policy: policy.value, kv_budget: kv_budget.value.trim(), fps: Number(fps.value), live: live.checked };
  const body = Object.fromEntries(Object.entries(given).filter(([, value]) => value));
  if (!archive.checked) body.archive = false;
  if (question.value.trim()) body.ask = [{ question: question.value.trim(), every: every.value.trim() || "30s" }];
  const { id } = await fetched("v1/sessions", { method: "POST", body });
  $("wish").hidden = true;
  $("new").setAttribute("aria-expanded", "false");
  await listSessions();
  await open(id);
  $("question").focus();
}

const act = (action, said) =>
  doing(async () => {
    await fetched(`v1/sessions/${state.id}/${action}`, { method: "POST" });
    await open(state.id);
    tell(said);
  });

async function remove() {
  if (!confirm("Forget this session, and everything it has seen?")) return;
  await call(`v1/sessions/${state.id}`, { method: "DELETE" });
  await open("");
  await listSessions();
}

async function start() {
  const data = await listSessions();
  const known = data.some(({ id }) => id === state.id);
  await open(known ? state.id : (data[0]?.id ?? ""));
  if (!data.length) $("new").click();
}

$("new").onclick = () => {
  $("wish").hidden = !$("wish").hidden;
  $("new").setAttribute("aria-expanded", String(!$("wish").hidden));
};
$("sessions").onchange = doing(() => open($("sessions").value));
$("wish").onsubmit = doing(begin);
$("ask").onsubmit = doing(ask);
$("stop").onclick = () => state.asking?.abort();
$("save").onclick = act("save", "Saved.");
$("restore").onclick = act("restore", "As it was saved.");
$("clear").onclick = act("clear", "Everything is forgotten.");
$("delete").onclick = doing(remove);
$("key").onsubmit = doing(async () => {
  sessionStorage.setItem("key", $("key-value").value);
  $("key").hidden = true;
  await start();
});
void doing(start)();
