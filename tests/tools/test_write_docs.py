import pytest
import write_docs

from megatron_reason.schema.method import METHODS


def test_pages_are_what_the_code_says() -> None:
    stale = [
        path.name
        for path, text in write_docs.pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run tools/write_docs.py: {stale} are out of date"
    assert {path.name for path in write_docs.PAGES.glob("*.md")} == {
        path.name for path in write_docs.pages()
    }


def test_every_setting_has_a_meaning() -> None:
    for name, method in METHODS:
        for field, info in method.config_class.model_fields.items():
            assert info.description, f"{name}: {field} has no docstring"


def test_a_method_without_a_section_is_refused() -> None:
    complete = "X: y.\n\nLoss. a\nSource: b\nData. c\nExpect. d\nDeviations. e"
    assert write_docs.sections_of(complete)[1]["Source"] == "b"
    with pytest.raises(ValueError, match="Expect"):
        write_docs.sections_of(complete.replace("Expect. d\n", ""))


def test_presets_stand_beside_the_defaults() -> None:
    page = write_docs.page_of("oxa", METHODS.get("oxa"))
    assert "| setting | default | `paper` | `released` | `mle` | `mle_150k` |" in page
    assert "| `clamp` | `official` | **`exact`** | `official` |  |  |" in page
    assert "- `released`: OXA's released code" in page
