"""What a local model answers: the first token, whatever else is in the batch."""

from typing import Any

import torch

from modint_guard.data.item import FAMILIES, prompt, reply_for
from modint_guard.data.perturb import REGISTRY, fitting, perturb
from modint_training.loop.predict import first_logits, first_words, flip_baseline, prepare, right_first_words
from modint_training.loop.validation import MAX_TOKENS
from modint_training.method.families import chat_content
from modint_training.models.loading import load_base
from modint_training.tinyworld import suite
from modint_training.tinyworld.conditions import WATCHED
from modint_training.tinyworld.source import accuracy_rows, validation_sets
from tests.training.small import small_model

ITEMS = [item for family in FAMILIES for item in suite.items(family, "test", 4)]


def test_logits_do_not_depend_on_the_batch_or_its_order(processor: Any) -> None:
    model = small_model(processor)
    together = first_logits(model, processor, ITEMS)
    alone = torch.cat([first_logits(model, processor, [item]) for item in reversed(ITEMS)]).flip(0)
    assert together.shape == (12, len(processor.tokenizer))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_logits_are_what_the_model_says_after_the_prompt(processor: Any) -> None:
    model = small_model(processor).eval()
    found = first_logits(model, processor, ITEMS)
    for item, logits in zip(ITEMS, found, strict=True):
        messages = [{"role": "user", "content": chat_content(prompt(item), item.image)}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=text, images=item.image, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            said = model(**{name: value for name, value in inputs.items() if name != "token_type_ids"}).logits
        torch.testing.assert_close(logits, said[0, -1], atol=1e-5, rtol=1e-5)


def test_logits_are_those_of_the_bundled_base_read_whole() -> None:
    model, processor = load_base("tinyworld-base")
    disturbed = [perturb(item, "misleading_description") for item in ITEMS[:4]]
    items = [*ITEMS, *disturbed]
    expected = torch.zeros(len(items), len(processor.tokenizer))
    with torch.no_grad():
        for batch in prepare(items, processor).batches:
            whole = model(**batch.inputs, use_cache=False).logits  # (R, L, V)
            for row, (index, at) in enumerate(zip(batch.indices, batch.positions.tolist(), strict=True)):
                expected[index] = whole[row, at]
    found = first_logits(model, processor, items)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_the_head_reads_one_position_a_row_and_the_model_no_more_tokens_than_fit(processor: Any) -> None:
    model = small_model(processor)
    heads: list[tuple[int, ...]] = []
    bodies: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _, args, __: heads.append(tuple(args[0].shape)))
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: bodies.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    question = "The river runs. " * 100
    long = [ITEMS[0].replace(id=str(number), question=question) for number in range(60)]
    first_words(model, processor, [*long, *ITEMS])
    assert heads == [(rows, 32) for rows, _ in bodies]  # as wide as the small model's hidden states
    assert max(rows * length for rows, length in bodies) <= MAX_TOKENS < 60 * max(n for _, n in bodies)


def test_a_look_leaves_the_model_in_training(processor: Any) -> None:
    model = small_model(processor).train()
    first_logits(model, processor, ITEMS[:1])
    assert model.training
    first_logits(model.eval(), processor, ITEMS[:1])
    assert not model.training


def one_word_model(processor: Any, word: str) -> Any:
    """A model that says `word` whatever it sees: all layers silent, the last norm pointing at the word."""
    model = small_model(processor)
    text = model.model.language_model
    with torch.no_grad():
        for layer in text.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        text.embed_tokens.weight.fill_(1.0)
        text.embed_tokens.weight[processor.tokenizer.convert_tokens_to_ids(word)] = 2.0
        model.model.multi_modal_projector.linear_2.weight.zero_()
        model.model.multi_modal_projector.linear_2.bias.fill_(1.0)
    return model


def test_answers_are_the_most_likely_first_tokens(processor: Any) -> None:
    model = one_word_model(processor, "B")
    assert first_words(model, processor, ITEMS) == ["B"] * 12


def test_an_answer_is_right_if_its_first_token_is_the_true_reply(processor: Any) -> None:
    items = [item for family in FAMILIES for item in suite.items(family, "test", 40)]
    right = [reply_for(item, item.answer) == "B" for item in items]
    assert 0 < sum(right) < 60
    assert right_first_words(one_word_model(processor, "B"), processor, items) == right


def test_an_answer_that_never_changes_has_a_flip_baseline_of_nought(processor: Any) -> None:
    items = [item for family in FAMILIES[:2] for item in suite.items(family, "test", 2)]
    found = flip_baseline(one_word_model(processor, "B"), processor, items)
    assert found is not None
    kinds = {kind.name for kind in REGISTRY.values()} - {"no_image", "grey"}
    assert set(found["by_perturbation"]) == kinds
    # Two text-heavy items, each without the two kinds that leave nothing to take away.
    assert (found["flip_ratio"], found["n"]) == (0.0, sum(len(fitting(item)) for item in items) - 4)
    assert flip_baseline(one_word_model(processor, "B"), processor, suite.items("vqa", "test", 2)) is None


def test_a_flip_is_counted_where_the_answer_follows_what_must_not_matter(processor: Any) -> None:
    model = small_model(processor)
    items = suite.items("image-heavy", "test", 3)
    lied = [perturb(item, "misleading_description") for item in items]
    expected = sum(
        one != other
        for one, other in zip(
            first_words(model, processor, lied), first_words(model, processor, items), strict=True
        )
    )
    found = flip_baseline(model, processor, items)
    assert found is not None and found["by_perturbation"]["misleading_description"] == expected / 3


def test_what_is_watched_while_training_holds_nothing_out() -> None:
    assert {condition.held_out for condition in WATCHED} == {"no"}
    assert [each.name for each in validation_sets(1)] == [
        f"{condition.family}/{condition.perturbation}" for condition in WATCHED
    ]


def test_the_test_split_is_tabled_by_form_and_sub_task(processor: Any) -> None:
    rows = list(accuracy_rows(one_word_model(processor, "yes"), processor, 8))
    asked = [row for row in rows if row["task"] == "self_ask"]
    assert {(row["family"], row["perturbation"]): row["accuracy"] for row in asked} == {
        ("image-heavy", "clean"): 1.0,
        ("image-heavy", "misleading_description"): 1.0,
        ("text-heavy", "no_image"): 0.0,
        ("text-heavy", "contradicting_image"): 0.0,
        ("vqa", "clean"): 1.0,
    }
    clean = [row for row in rows if (row["family"], row["held_out"]) == ("vqa", "no")][:7]
    assert [(row["task"], row["form"], row["n"]) for row in clean] == [
        ("all", "all", 8),
        ("all", "word", 4),
        ("all", "letter", 4),
        ("digit_plus", "all", 2),
        ("is_colour", "all", 2),
        ("shape_of_colour", "all", 2),
        ("count_of_colour", "all", 2),
    ]
