"""The page at /: ask a model a question, see the answer come, and how fast. It loads no further file."""

PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lorahub-edge</title>
<style>
  :root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 22%, transparent); }
  * { box-sizing: border-box; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
  header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1rem; }
  h1 { font-size: 1.35rem; margin: 0; }
  header p, .note { font-size: .875rem; opacity: .7; margin: .25rem 0; }
  input, select, textarea, button { font: inherit; width: 100%; padding: .4rem .6rem; border: 1px solid var(--line);
    border-radius: .4rem; background: Field; color: FieldText; }
  textarea { resize: vertical; display: block; margin: .75rem 0; }
  label { display: block; min-width: 0; font-size: .875rem; }
  .row { display: grid; grid-template-columns: 2fr 1fr 1fr 1fr; gap: .75rem; margin-top: .75rem; }
  .buttons { display: flex; gap: .75rem; }
  .buttons button { width: auto; padding: .4rem 1.4rem; cursor: pointer; }
  #ask { background: #1f5fbf; border-color: #1f5fbf; color: #fff; }
  article { border-top: 1px solid var(--line); margin-top: 1.25rem; padding-top: .75rem; }
  article p { margin: .25rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
  .question { opacity: .7; }
  .failed { color: light-dark(#a11, #f88); opacity: 1; }
  @media (max-width: 36rem) { .row { grid-template-columns: 1fr 1fr; } }
</style>
<header><h1>lorahub-edge</h1><p id="state"></p></header>
<form id="form">
  <label id="locked" hidden>API key<input id="key" type="password" autocomplete="off"></label>
  <div class="row">
    <label>Model<select id="model"></select></label>
    <label>As<select id="kind"><option value="text">text</option><option value="chat">chat</option></select></label>
    <label>Max tokens<input id="tokens" type="number" min="1" placeholder="model's own"></label>
    <label>Temperature<input id="temperature" type="number" min="0" max="100" step="any" value="0"></label>
  </div>
  <textarea id="prompt" rows="4" aria-label="Input" required autofocus></textarea>
  <div class="buttons"><button id="ask">Answer</button><button id="clear" type="button">Clear</button></div>
</form>
<main id="log" aria-live="polite"></main>
<script>
  const byId = (id) => document.getElementById(id);
  let said = [];  // the messages of the chat so far
  let underWay = null;

  function send(path, body, signal) {
    const headers = {"Content-Type": "application/json"};
    if (byId("key").value) headers.Authorization = "Bearer " + byId("key").value;
    return fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body), signal} : {headers});
  }

  async function refusal(response) {
    if (response.status === 401) byId("locked").hidden = false;
    const body = await response.json().catch(() => null);
    return new Error(body?.error?.message ?? `the service answered ${response.status}`);
  }

  async function showModels() {
    try {
      const health = await (await send("health")).json();
      const {name, family, precision} = health;
      byId("state").textContent = name ? `${name} · ${family} · ${precision}` : health.error.message;
      const response = await send("v1/models");
      if (!response.ok) throw await refusal(response);
      const models = (await response.json()).data, chosen = byId("model").value;
      const wanted = models.some(({id}) => id === chosen) ? chosen : health.default;
      byId("model").replaceChildren(...models.map(({id, parent}) => {
        const option = document.createElement("option");
        option.value = id;
        option.textContent = parent ? id : id + " (base)";
        option.selected = id === wanted;
        return option;
      }));
    } catch (error) { byId("state").textContent = error.message; }
  }

  function paragraph(article, kind, text) {
    const made = document.createElement("p");
    made.className = kind;
    made.textContent = text;
    article.append(made);
    return made;
  }

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "";;) {
      const {value, done} = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice("data: ".length));
    }
  }

  function question(text, isChat) {
    const body = {stream: true, stream_options: {include_usage: true}};
    if (byId("model").value) body.model = byId("model").value;
    if (byId("tokens").value) body.max_tokens = Number(byId("tokens").value);
    if (byId("temperature").value) body.temperature = Number(byId("temperature").value);
    return isChat ? {...body, messages: [...said, {role: "user", content: text}]} : {...body, prompt: text};
  }

  function speed({model, usage, first, last}, started) {
    // of the whole answer: a first text may hold several tokens, so what follows it says nothing of the others
    const rate = usage.completion_tokens * 1000 / (last - started);
    const tokens = `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`;
    return `${model} · first text ${Math.round(first - started)} ms · ${rate.toFixed(1)} tokens/s · ${tokens}`;
  }

  async function ask(text, isChat, signal) {
    const article = document.createElement("article"), messages = said;
    byId("log").append(article);
    paragraph(article, "question", text);
    const answer = paragraph(article, "answer", ""), note = paragraph(article, "note", "…");
    const started = performance.now(), seen = {};
    try {
      const response = await send(isChat ? "v1/chat/completions" : "v1/completions", question(text, isChat), signal);
      if (!response.ok) throw await refusal(response);
      for await (const event of events(response)) {
        if (event.error) throw new Error(event.error.message);
        seen.model = event.model;
        seen.usage = event.usage ?? seen.usage;
        const piece = event.choices[0]?.delta?.content ?? event.choices[0]?.text;
        if (event.choices.length) seen.last = performance.now();
        if (piece || event.choices[0]?.finish_reason) seen.first ??= seen.last;
        if (piece) answer.textContent += piece;
      }
      if (!seen.usage) throw new Error("the answer was cut off");
      note.textContent = speed(seen, started);
    } catch (error) {
      note.className = "note failed";
      note.textContent = error.name === "AbortError" ? "stopped" : error.message;
    }
    if (isChat && answer.textContent && said === messages)  // otherwise it was cleared meanwhile
      said = [...said, {role: "user", content: text}, {role: "assistant", content: answer.textContent}];
    return Boolean(seen.model);
  }

  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (underWay) return underWay.abort();
    underWay = new AbortController();
    byId("ask").textContent = "Stop";
    byId("ask").formNoValidate = true;  // a run can be stopped with an empty question in its field
    const isAnswered = await ask(byId("prompt").value, byId("kind").value === "chat", underWay.signal);
    underWay = null;
    byId("ask").textContent = "Answer";
    byId("ask").formNoValidate = false;
    if (!isAnswered) await showModels();  // the model may be gone
  });
  byId("clear").addEventListener("click", () => { said = []; byId("log").replaceChildren(); });
  byId("key").addEventListener("change", showModels);
  showModels();
</script>
</html>
"""
