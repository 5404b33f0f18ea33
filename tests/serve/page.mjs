// Runs the page of a service in a document that has just what the page uses, and prints what a reader would see.
// Arguments: the service's address, a key for it, a text, and a line of steps as JSON: [{model, kind, tokens}, ...].
import vm from "node:vm";

const [address, key, text, steps] = process.argv.slice(2);

class Element {
  constructor(id) { Object.assign(this, {id, value: "", textContent: "", className: "", children: [], listeners: {}}); }
  addEventListener(kind, listener) { this.listeners[kind] = listener; }
  append(child) { this.children.push(child); }
  replaceChildren(...children) {
    this.children = children;
    this.value = (children.find((child) => child.selected) ?? children[0])?.value ?? "";
  }
  emit(kind) { return this.listeners[kind]({preventDefault() {}}); }
}

const page = await (await fetch(address)).text();
const script = page.match(/<script>([^]*)<\/script>/)[1];
const elements = Object.fromEntries([...page.matchAll(/ id="(\w+)"/g)].map(([, id]) => [id, new Element(id)]));
elements.locked.hidden = true;
let running = 0;
const asked = async (path, options) => {
  running++;
  try { return await fetch(new URL(path, address), options); } finally { running--; }
};
const settled = async () => {
  for (let quiet = 0; quiet < 20; quiet = running ? 0 : quiet + 1) await new Promise((go) => setTimeout(go, 5));
};
const document = {getElementById: (id) => elements[id] ?? null, createElement: (id) => new Element(id)};
vm.runInNewContext(script, {document, fetch: asked, performance, AbortController, TextDecoderStream});

await settled();
const seen = {isLocked: !elements.locked.hidden, state: elements.state.textContent};
elements.key.value = key;
await elements.key.emit("change");
seen.models = elements.model.children.map((option) => option.textContent);
seen.chosen = elements.model.value;
for (const {model, kind, tokens} of JSON.parse(steps)) {
  Object.assign(elements.model, {value: model});
  Object.assign(elements.kind, {value: kind});
  Object.assign(elements.tokens, {value: tokens});
  elements.prompt.value = text;
  await elements.form.emit("submit");
}
seen.answers = elements.log.children.map((article) => article.children.map((child) => child.textContent));
elements.tokens.value = "200";
elements.kind.value = "text";
const run = elements.form.emit("submit");
const label = elements.ask.textContent;
while (!elements.log.children.at(-1).children[1].textContent) await new Promise((go) => setTimeout(go, 1));
await elements.form.emit("submit");
await run;
seen.stopped = [label, elements.log.children.at(-1).children[2].textContent, elements.ask.textContent];
elements.clear.emit("click");
seen.n_left = elements.log.children.length;
console.log(JSON.stringify(seen));
