/** Translates a text sentence by sentence while it is written. `?bundle=URL&precision=NAME` says where the bundle is. */
import { load } from "onnxport";

const [source, target, progress, status] = ["source", "target", "progress", "status"].map((id) => document.getElementById(id));
const asked = new URLSearchParams(location.search);
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const translations = new Map(); // sentence → its translation: only what is new is translated
let model;
let control = new AbortController();

function say(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

/** Sentences of a text and what stands between them, as [sentence, rest] pairs. */
function sentences(text) {
  return Array.from(text.matchAll(/([^.!?\n]*[^\s.!?][^.!?\n]*[.!?]*["')\]]*)?(\s*)/g), ([, sentence = "", rest]) => {
    const end = sentence.trimEnd();
    return [end.trimStart(), sentence.slice(end.length) + rest];
  }).filter(([sentence, rest]) => sentence || rest);
}

async function translate() {
  control.abort();
  control = new AbortController();
  const { signal } = control;
  const begun = performance.now();
  let [done, tokens] = ["", 0];
  try {
    for (const [sentence, rest] of sentences(source.value)) {
      if (!translations.has(sentence)) {
        let text = "";
        const stream = model.stream(sentence, { signal });
        for await (const piece of stream) {
          signal.throwIfAborted();
          text += piece;
          target.textContent = done + text;
        }
        translations.set(sentence, text);
        tokens += stream.result.tokens.length;
      }
      done += translations.get(sentence) + rest;
    }
    target.textContent = done.trimEnd();
    const seconds = (performance.now() - begun) / 1000;
    say(tokens ? `${tokens} tokens in ${seconds.toFixed(2)} s, ${Math.round(tokens / seconds)} a second` : "Ready");
  } catch (error) {
    if (!signal.aborted) say(error.message, true);
  }
}

const arrived = new Map(); // file → bytes
function arrives({ file, loaded, total }) {
  arrived.set(file, [loaded, total]);
  const [have, all] = [0, 1].map((i) => [...arrived.values()].reduce((sum, one) => sum + one[i], 0));
  progress.value = have / all;
  say(`Loading the model: ${megabytes(have)} of ${megabytes(all)} MB`);
}

try {
  const begun = performance.now();
  const bundle = new URL(asked.get("bundle") ?? "../../artifacts/en-de", location.href);
  model = await load(bundle, { precision: asked.get("precision") ?? "int8", verify: true, progress: arrives });
  progress.hidden = true;
  say(`Ready: ${model.precision}, loaded in ${((performance.now() - begun) / 1000).toFixed(1)} s`);
  source.addEventListener("input", translate);
  if (source.value) translate();
} catch (error) {
  progress.hidden = true;
  say(error.message, true);
}
