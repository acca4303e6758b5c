"""Choose the rows of an instruction mixture that serve a task, on a language model with LoRA."""

from collections.abc import Sequence

import peft
import torch
import transformers

import zoo

dice = torch.Generator().manual_seed(0)
answers = torch.randint(100, 200, (16, 4), generator=dice)  # of 16 questions, four tokens each


def row(question: int, answer: torch.Tensor) -> dict[str, list[int]]:
    """Tokens of a question and an answer; the loss leaves out the question (-100)."""
    return {"input_ids": [1, question, *answer.tolist()], "labels": [-100, -100, *answer.tolist()]}


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


questions = [int(q) for q in torch.randint(16, (300,), generator=dice)]
right = [row(10 + q, answers[q]) for q in questions[:100]]
wrong = [row(10 + q, answers[(q + 1) % 16]) for q in questions[100:200]]
irrelevant = [row(50 + q, torch.randint(2, 100, (4,), generator=dice)) for q in questions[200:]]
target = [row(10 + q, answers[q]) for q in range(16)]

torch.manual_seed(0)  # in place of a tiny random model: AutoModelForCausalLM.from_pretrained(...)
config = transformers.LlamaConfig(vocab_size=200, hidden_size=64, intermediate_size=128,
                                  num_hidden_layers=2, num_attention_heads=4)  # fmt: skip
lora = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
net = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)

selector = zoo.load("bayesian-dps", keep=1 / 3)
selector.fit(right + wrong + irrelevant, target, model=net, collate=collate, lr=1e-2)
chosen = selector.select(k=100)
print(f"all rows   {100 / 3:.1f} % right")
print(f"chosen     {100 * (chosen < 100).mean():.1f} % right")
