"""The page at /: choose a model, ask a question or chat, see the answer come and how fast."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lorahub-edge</title>
<style>
  :root { color-scheme: light dark; --line: #8886; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; margin: 0 0 1rem; }
  textarea, select, input { font: inherit; padding: .4rem; box-sizing: border-box; max-width: 100%; }
  textarea { width: 100%; }
  button { font: inherit; padding: .3rem 1.2rem; }
  fieldset { border: 1px solid var(--line); margin: 0 0 1rem; display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }
  label { display: inline-flex; gap: .5rem; align-items: center; }
  input[type=number] { width: 6rem; }
  .row { display: flex; gap: 1rem; align-items: center; margin: .5rem 0; flex-wrap: wrap; }
  output { display: block; white-space: pre-wrap; border-left: 3px solid var(--line); padding: .2rem 1rem; }
  #note { opacity: .7; font-size: .9em; }
</style>
<h1>lorahub-edge</h1>
<form id="form">
  <fieldset>
    <legend>Model and settings</legend>
    <label>Model <select id="model"></select></label>
    <label>As <select id="kind">
      <option value="text">a text</option><option value="chat">a chat</option>
    </select></label>
    <label>Most tokens <input id="tokens" type="number" min="1" placeholder="its own"></label>
    <label>Temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0"></label>
  </fieldset>
  <textarea id="prompt" rows="4" aria-label="Input" required autofocus></textarea>
  <div class="row">
    <button>Answer</button>
    <button id="stop" type="button" hidden>Stop</button>
    <input id="key" type="password" placeholder="API key" aria-label="API key" autocomplete="off" hidden>
  </div>
</form>
<output id="answer" for="prompt"></output>
<p id="note"></p>
<script>
  const byId = (id) => document.getElementById(id);
  const say = (text) => { byId("note").textContent = text; };
  const headers = () => ({"Content-Type": "application/json",
    ...(byId("key").value && {Authorization: "Bearer " + byId("key").value})});

  async function listModels() {
    const response = await fetch("v1/models", {headers: headers()});
    if (response.status === 401) { byId("key").hidden = false; say("This service wants its API key."); return; }
    const rows = (await response.json()).data, own = byId("model");
    own.replaceChildren(new Option("the default", ""), ...rows.map((row) =>
      new Option(row.parent ? row.id + " (adapter)" : row.id + " (base)", row.id)));
    say("");
  }

  function question() {
    const text = byId("prompt").value, isChat = byId("kind").value === "chat";
    const body = {stream: true, stream_options: {include_usage: true}, temperature: Number(byId("temperature").value)};
    if (byId("model").value) body.model = byId("model").value;
    if (byId("tokens").value) body.max_tokens = Number(byId("tokens").value);
    if (isChat) body.messages = [{role: "user", content: text}]; else body.prompt = text;
    return {path: isChat ? "v1/chat/completions" : "v1/completions", body};
  }

  function speed(started, first, ended, usage) {
    const later = (ended - first) / 1000, n = usage.completion_tokens;
    const rate = n > 1 && later > 0 ? `, then ${((n - 1) / later).toFixed(1)} tokens per second` : "";
    const wait = Math.round(first - started);
    return `${usage.prompt_tokens} tokens read, ${n} written; first text after ${wait} ms${rate}`;
  }

  async function ask(signal) {
    const {path, body} = question(), started = performance.now();
    let first = 0, rest = "";
    const response = await fetch(path, {method: "POST", headers: headers(), body: JSON.stringify(body), signal});
    if (response.status === 401) byId("key").hidden = false;
    if (!response.ok) { say((await response.json()).error.message); return; }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const {value, done} = await reader.read();
      if (done) return;
      const events = (rest + value).split("\\n\\n");
      rest = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]") continue;
        const data = JSON.parse(event.slice(6));
        if (data.error) { say(data.error.message); return; }
        const choice = data.choices[0], text = choice && (choice.text ?? choice.delta.content ?? "");
        if (text) { first ||= performance.now(); byId("answer").textContent += text; }
        if (data.usage) say(speed(started, first || performance.now(), performance.now(), data.usage));
      }
    }
  }

  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const control = new AbortController();
    byId("answer").textContent = ""; say("");
    byId("stop").hidden = false; byId("stop").onclick = () => control.abort();
    try { await ask(control.signal); } catch (error) { say(String(error.message || error)); }
    byId("stop").hidden = true;
  });
  byId("key").addEventListener("change", listModels);
  listModels().catch((error) => say(String(error)));
</script>
</html>
"""
