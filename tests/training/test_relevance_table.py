"""The lexical rules on the three families: hardly ever wrong, sometimes at a loss."""

from modint_training.relevance_table import rows


def test_the_rules_take_no_question_of_one_modality_for_the_other() -> None:
    found = {(row["family"], row["held_out"]): row for row in rows(80, 0)}
    for held_out in ("no", "wording"):
        image, text, both = (found[family, held_out] for family in ("image-heavy", "text-heavy", "vqa"))
        assert image["image"] >= 0.8 and image["text"] == 0.0
        assert text["text"] >= 0.8 and text["image"] == 0.0
        assert both["image"] + both["both"] == 1.0 and both["needs"] == "both"
        for row in (image, text, both):
            assert abs(sum(row[name] for name in ("image", "text", "both", "unknown")) - 1.0) < 1e-9
