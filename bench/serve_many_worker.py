"""One contender of bench.serve_many: an HTTP service on loopback that ignores end tokens.

Runs in each contender's own environment, so it imports nothing of this repository but for `ours` and `before`.

python serve_many_worker.py ours|before|ctranslate2|optimum|llama.cpp SOURCE --port P --threads N --clients N
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import queue
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MAX_BATCH = 32
Tell = Callable[[int, str], bool]  # (row of the batch, text): whether that row goes on
Answer = Callable[[list[str], list[int], Tell], None]


def ours(folder: str, options: argparse.Namespace) -> None:
    """lorahub_edge.serve, of whichever checkout is on the path."""
    from lorahub_edge.serve import OnnxModel, open_folder
    from lorahub_edge.serve.server import make_server
    from lorahub_edge.serve.server_settings import ServerSettings

    files = open_folder(folder, adapter="none")
    files = dataclasses.replace(files, end_ids=(), max_new_tokens=1024)
    model = OnnxModel(files, n_threads=options.threads)
    limits = {"max_batch": MAX_BATCH, "max_waiting": 512, "timeout_s": 1800.0, "max_new_tokens": 1024}
    if "cache_bytes" in {field.name for field in dataclasses.fields(ServerSettings)}:
        limits["cache_bytes"] = 4 << 30
    server = make_server(model, ServerSettings(**limits))
    server.run(sockets=[socket.create_server(("127.0.0.1", options.port))])


def ctranslate2(folder: str, options: argparse.Namespace) -> Answer:
    """Its Generator in int8. One batch has one length: a row that has enough is told to stop."""
    import ctranslate2 as ct2
    from tokenizers import Tokenizer

    generator = ct2.Generator(folder, compute_type="int8", intra_threads=options.threads, inter_threads=1)
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    def answer(prompts: list[str], lengths: list[int], tell: Tell) -> None:
        n_said = [0] * len(prompts)

        def on_step(step: Any) -> bool:
            row = step.batch_id
            if n_said[row] >= lengths[row]:
                return True
            n_said[row] += 1
            return not tell(row, tokenizer.decode([step.token_id]))

        most = max(lengths)
        tokens = [tokenizer.encode(prompt, add_special_tokens=False).tokens for prompt in prompts]
        generator.generate_batch(
            tokens, max_length=most, min_length=most, sampling_topk=1, include_prompt_in_result=False,
            callback=on_step,
        )  # fmt: skip

    return answer


def optimum(folder: str, options: argparse.Namespace) -> Answer:
    """Optimum's model class and transformers' generate, whose streamer tells of all rows at once."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import PreTrainedTokenizerFast
    from transformers.generation.streamers import BaseStreamer

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    torch.set_num_threads(options.threads)
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=settings)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"), padding_side="left")
    tokenizer.pad_token_id = 2

    def answer(prompts: list[str], lengths: list[int], tell: Tell) -> None:
        encoded = tokenizer(prompts, return_tensors="pt", padding=True)
        most, n_said = max(lengths), 0

        class Told(BaseStreamer):  # type: ignore[misc,no-any-unimported]
            def put(self, value: Any) -> None:
                nonlocal n_said
                if value.ndim == 2:  # the prompts
                    return
                n_said += 1
                for row, token in enumerate(value.tolist()):
                    if n_said <= lengths[row]:
                        tell(row, tokenizer.decode([token]))

            def end(self) -> None:
                pass

        model.generate(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], max_new_tokens=most,
            min_new_tokens=most, do_sample=False, streamer=Told() if len(prompts) == 1 else None,
        )  # fmt: skip
        for row, length in enumerate(lengths):
            for _ in range(length if len(prompts) > 1 else 0):
                tell(row, " ")

    return answer


def llama_cpp(path: str, options: argparse.Namespace) -> None:
    """Its own server, by the package that brings it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.port = options.port
    params.n_parallel = min(options.clients, MAX_BATCH)
    params.n_ctx = 640 * params.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_gpu_layers = 0
    params.cont_batching = True
    params.sampling.ignore_eos = True
    server = xllamacpp.Server(params)
    threading.Event().wait()
    del server


def front(answer: Answer, port: int) -> None:
    """A plain service: one thread answers whatever waits as one batch, up to MAX_BATCH; a thread per connection."""
    waiting: queue.Queue[tuple[str, int, queue.Queue[str | None]]] = queue.Queue()

    def work() -> None:
        while True:
            batch = [waiting.get()]
            while len(batch) < MAX_BATCH and not waiting.empty():
                batch.append(waiting.get())
            left = [n for _, n, _ in batch]

            def tell(row: int, text: str, batch: Any = batch, left: list[int] = left) -> bool:
                batch[row][2].put(text)
                left[row] -= 1
                if left[row] == 0:
                    batch[row][2].put(None)
                return left[row] > 0

            answer([prompt for prompt, _, _ in batch], [n for _, n, _ in batch], tell)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            news: queue.Queue[str | None] = queue.Queue()
            waiting.put((body["prompt"], body["max_tokens"], news))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            while (text := news.get()) is not None:
                self.wfile.write(f"data: {json.dumps({'choices': [{'text': text}]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    threading.Thread(target=work, daemon=True).start()
    Server(("127.0.0.1", port), Handler).serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=["ours", "before", "ctranslate2", "optimum", "llama.cpp"])
    parser.add_argument("source")
    for name in ("port", "threads", "clients"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    if options.contender in ("ours", "before"):
        ours(options.source, options)
    elif options.contender == "llama.cpp":
        llama_cpp(options.source, options)
    else:
        make = ctranslate2 if options.contender == "ctranslate2" else optimum
        front(make(options.source, options), options.port)


if __name__ == "__main__":
    main()
