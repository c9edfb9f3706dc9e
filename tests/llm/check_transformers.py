#!/usr/bin/env python3
"""Loads a checkpoint of ours with `transformers` and prints its greedy continuation of a prompt.

Run by hand where torch and transformers are (no test of the build needs them):

    check_transformers.py CHECKPOINT --prompt "And God said" [--tokens 48] [--expect TEXT_OR_FILE]

CHECKPOINT is a folder as troupe-train writes it. --expect takes what our engine said for the same
prompt, max_tokens and temperature 0: the text itself, or a file that holds it or the JSON answer of
/v1/completions. With it the exit status says whether the two are the same, and 1 also stands for a
checkpoint that does not fit: missing or unexpected weights, or a tokenizer that does not round-trip.
"""
import argparse
import json
import pathlib
import sys

import torch
import transformers


def load(folder):
    model, report = transformers.GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    # The head is tied to the embedding, so its weight is in no file.
    missing = set(report["missing_keys"]) - {"lm_head.weight"}
    wrong = [*missing, *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        sys.exit(f"weights that do not fit: {wrong}")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return model.eval(), tokenizer


def continuation(model, tokenizer, prompt, tokens):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    if tokenizer.decode(ids[0], **plain) != prompt:
        sys.exit("the tokenizer does not give the prompt back")
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                             do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1]:], **plain)


def expected(given):
    path = pathlib.Path(given)
    try:
        text = path.read_text() if path.is_file() else given
    except OSError:  # A text too long for a name.
        text = given
    if text.startswith('{"'):
        return json.loads(text)["choices"][0]["text"]
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--expect", help="our engine's text, or a file of it or of the JSON answer")
    options = parser.parse_args()
    model, tokenizer = load(options.checkpoint)
    text = continuation(model, tokenizer, options.prompt, options.tokens)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, "
          f"{type(model).__name__}, f32", file=sys.stderr)
    print(text)
    if options.expect is None:
        return 0
    ours = expected(options.expect)
    if ours == text:
        print("the same as ours", file=sys.stderr)
        return 0
    at = next((i for i, (a, b) in enumerate(zip(ours, text)) if a != b), min(len(ours), len(text)))
    print(f"differs from character {at} on; ours: {ours!r}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
