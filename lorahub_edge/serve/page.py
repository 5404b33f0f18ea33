"""The page at /: ask the model a question, see the answer come."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lorahub-edge</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; color: #222; }
  textarea { width: 100%; box-sizing: border-box; font: inherit; padding: .5rem; }
  button { font: inherit; padding: .3rem 1.2rem; margin: .5rem 0; }
  output { display: block; white-space: pre-wrap; border-left: 3px solid #999; padding: .2rem 1rem; min-height: 1.5em; }
  #note { color: #666; font-size: .9em; }
</style>
<h1>lorahub-edge</h1>
<form id="form">
  <textarea id="prompt" rows="4" aria-label="Input" required autofocus></textarea>
  <input id="key" type="password" placeholder="API key" aria-label="API key" autocomplete="off" hidden>
  <button>Answer</button>
</form>
<output id="answer" for="prompt"></output>
<p id="note"></p>
<script>
  const byId = (id) => document.getElementById(id);
  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const started = performance.now();
    byId("answer").textContent = ""; byId("note").textContent = "";
    const headers = {"Content-Type": "application/json"};
    if (byId("key").value) headers.Authorization = "Bearer " + byId("key").value;
    const response = await fetch("v1/completions", {
      method: "POST", headers,
      body: JSON.stringify({prompt: byId("prompt").value, stream: true}),
    });
    if (response.status === 401) byId("key").hidden = false;
    if (!response.ok) { byId("note").textContent = (await response.json()).error.message; return; }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const {value, done} = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\\n\\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") continue;
        const data = JSON.parse(line.slice(6));
        if (data.error) byId("note").textContent = data.error.message;
        else byId("answer").textContent += data.choices[0].text;
      }
    }
    byId("note").textContent ||= Math.round(performance.now() - started) + " ms";
  });
</script>
</html>
"""
