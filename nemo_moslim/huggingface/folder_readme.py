"""README.md of exported folders: what a reader who finds only the folder has to know."""

from nemo_moslim.preferences import PreferenceSchema

_REWARD = """# Multi-head reward classification model

Stock `Qwen2ForSequenceClassification`, no remote code. Its {classes} logits are these heads side by side:

| dimension | levels | logits |
|---|---|---|
{rows}

Trained with the loss `{loss}`: probabilities are {softmax}.

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSequenceClassification.from_pretrained("{folder}").eval()
chat = [{{"role": "user", "content": "Name some fruits."}}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
text += "Apples and pears." + tokenizer.eos_token
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    logits = model(**inputs).logits[0]
{example}
```

- The text is the chat template with the prompt, then the answer, then the EOS token. Prompts carry no preference tags.
- The model reads the last token that is not the pad token; pad on the right with the tokenizer's own pad token.
- `config.json` holds under `moslim` the heads, the loss, and the average and standard deviation per (dimension, level)
  that map probabilities to rewards: r = 1/k sum_i (p_i[target] - average_i[target]) / standard_deviation_i[target].
- In vLLM ask for raw logits (its default softmax spans all heads): serve it for classification with activation off.
"""

_POLICY = """# Language model

Stock `Qwen2ForCausalLM`, no remote code; prompts go through the tokenizer's chat template.

If it was trained as a preference-controlled policy, write the wanted levels before the prompt, in the user's message:
`<helpfulness 5><harmless 2> Name some fruits.` Leave a dimension out to leave it open.
"""


def reward_model_readme(schema: PreferenceSchema, loss: str) -> str:
    """README of an exported reward model."""
    rows = "\n".join(
        f"| {d.name} | {d.levels} | {schema.slices[d.name].start} to {schema.slices[d.name].stop - 1} |"
        for d in schema.dimensions
    )
    per_head = loss == "per_head"
    example = (
        "\n".join(
            f'print("{d.name}", logits[{schema.slices[d.name].start}:{schema.slices[d.name].stop}].softmax(-1))'
            for d in schema.dimensions
        )
        if per_head
        else "print(logits.softmax(-1))  # one softmax over all heads"
    )
    softmax = "a softmax inside each head" if per_head else "one softmax over all heads"
    return _REWARD.format(
        classes=schema.num_classes, rows=rows, loss=loss, softmax=softmax, example=example, folder="THIS_FOLDER"
    )


def policy_readme() -> str:
    """README of an exported language model."""
    return _POLICY
