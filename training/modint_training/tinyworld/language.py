"""TinyWorld's tokenizer, chat template and processor: a byte-level BPE trained on its own prompts."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from modint_guard.data.item import LETTERS, prompt
from modint_guard.data.perturb import NEUTRAL
from modint_training.tinyworld import draw
from modint_training.tinyworld.suite import Mixture, training_item

VOCABULARY = 704
# The tokenizer's corpus is fixed, so that a recipe's proportions do not change the vocabulary.
CORPUS = Mixture(
    families=(0.38, 0.32, 0.30),
    captioned=0.60,
    caption_true=0.92,
    caption_unrelated=0.05,
    caption_poor=0,
    pictured=0.70,
    picture_agrees=0.90,
    picture_other=0.10,
    letter=0.5,
    self_ask=0.04,
    letter_drill=0.08,
)
PAD, BOS, USER, ASSISTANT, SYSTEM, END, IMAGE = (
    "<|pad|>",
    "<|begin|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<image>",
)
SPECIAL = (PAD, BOS, USER, ASSISTANT, SYSTEM, END, IMAGE)
PATCH = 8

# No newline after a block tag: Jinja trims it, and the served prompt would differ from the trained one.
CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] if loop.first else '\n' + part['text'] }}{% endfor %}{% endif %}"
    "{% if not (loop.last and continue_final_message) %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(*, seed: int = 0, prompts: int = 6000) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `VOCABULARY` tokens in which every answer is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(seed, prompts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM, IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _corpus(seed: int, prompts: int) -> list[str]:
    lines = []
    for index in range(prompts):
        item = training_item(index, seed=seed, mixture=CORPUS)
        lines += [prompt(item), *item.choices]
    return [*lines, *(NEUTRAL * 20), *(list(LETTERS[:4]) * 200)]


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor that the engine loads with the weights: 40x40 pixels, values in [-1, 1]."""
    side = {"height": draw.SIZE, "width": draw.SIZE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": draw.SIZE}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
