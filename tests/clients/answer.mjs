// Greedy answers of an exported folder by transformers.js, which must be installed in the folder named first.
// node answer.mjs NODE_FOLDER EXPORT_FOLDER is_seq2seq MAX_NEW_TOKENS TEXT...   -> JSON: token ids of each answer
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { pathToFileURL } from "node:url";

const [nodeFolder, folder, isSeq2Seq, maxNewTokens, ...texts] = process.argv.slice(2);
const entry = createRequire(`${nodeFolder}/package.json`).resolve("@huggingface/transformers");
const { AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, env } = await import(pathToFileURL(entry));

env.allowRemoteModels = false;
env.localModelPath = `${dirname(folder)}/`;
const name = basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await (isSeq2Seq === "true" ? AutoModelForSeq2SeqLM : AutoModelForCausalLM).from_pretrained(name, {
  device: "cpu",
});
const answers = [];
for (const text of texts) {
  const inputs = await tokenizer(text);
  const output = await model.generate({ ...inputs, max_new_tokens: Number(maxNewTokens), do_sample: false });
  const row = output.tolist()[0].map(Number);
  answers.push(row.slice(isSeq2Seq === "true" ? 1 : inputs.input_ids.dims[1]));
}
process.stdout.write(JSON.stringify(answers));
