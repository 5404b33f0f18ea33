// Greedy answers of exported folders by transformers.js, which must be installed in the folder named as argument.
// Reads JSON: [{folder, is_seq2seq, max_new_tokens, texts}]; prints, for each, the token ids of each answer.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { pathToFileURL } from "node:url";

const entry = createRequire(`${process.argv[2]}/package.json`).resolve("@huggingface/transformers");
const { AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, env } = await import(pathToFileURL(entry));
env.allowRemoteModels = false;

async function answers({ folder, is_seq2seq, max_new_tokens, texts }) {
  env.localModelPath = `${dirname(folder)}/`;
  const name = basename(folder);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const factory = is_seq2seq ? AutoModelForSeq2SeqLM : AutoModelForCausalLM;
  const model = await factory.from_pretrained(name, { device: "cpu" });
  const rows = [];
  for (const text of texts) {
    const inputs = await tokenizer(text);
    const output = await model.generate({ ...inputs, max_new_tokens, do_sample: false });
    rows.push(output.tolist()[0].map(Number).slice(is_seq2seq ? 1 : inputs.input_ids.dims[1]));
  }
  return rows;
}

const found = [];
for (const request of JSON.parse(readFileSync(0, "utf8"))) found.push(await answers(request));
process.stdout.write(JSON.stringify(found));
