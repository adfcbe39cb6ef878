import pytest

from consist.errors import ConsistError
from consist.prompts.phrases import find_subject, shared_phrase

PROMPTS = ("a cat in Paris", "a cat on the moon")


def words_at(tokenizer, prompt, positions):
    ids = tokenizer(prompt).input_ids
    return tokenizer.decode([ids[i] for i in positions]).strip()


@pytest.mark.parametrize(
    ("prompts", "phrase"),
    [
        (PROMPTS, "cat"),
        (("A red cat in Paris", "a red cat, at night"), "red cat"),
        (("the cat sleeping", "the cat dancing on a ship", "the cat"), "cat"),
        (("a cat on the moon", "a cat on the beach"), "cat"),
        (("an elephant in the rain",) * 2, None),
        (("an elephant",) * 2, "elephant"),
        (("a photo of a cat", "a photo of a cat in Paris"), None),
        (("a red cat", "a red bus"), None),
        (("a cat sits", "a cat sleeps"), None),
        (("a cat", "the cat"), None),
        (("in Paris a cat", "in Rome a cat"), None),
    ],
)
def test_the_shared_phrase_is_told_only_where_that_is_safe(prompts, phrase):
    if phrase:
        assert shared_phrase(prompts) == phrase
    else:
        with pytest.raises(ConsistError, match="name it with --subject"):
            shared_phrase(prompts)


def test_positions_are_those_of_the_word(tokenizer):
    found = find_subject(tokenizer, PROMPTS)
    assert found == (((2,),), ((2,),))
    assert find_subject(tokenizer, PROMPTS, ("cat",)) == found
    assert find_subject(tokenizer, ("A CAT in Paris",), ("Cat",)) == (((2,),),)


def test_a_word_of_many_tokens_has_them_all(tokenizer):
    prompt = "a hippopotamus on the moon"
    ((positions,),) = find_subject(tokenizer, (prompt,), ("hippopotamus",))
    assert len(positions) > 1
    assert words_at(tokenizer, prompt, positions) == "hippopotamus"


def test_a_phrase_has_all_its_words(tokenizer):
    prompt = "a red bus on a beach"
    ((positions,),) = find_subject(tokenizer, (prompt,), ("red bus",))
    assert words_at(tokenizer, prompt, positions) == "red bus"


def test_every_occurrence_counts(tokenizer):
    assert find_subject(tokenizer, ("a cat on a cat",), ("cat",)) == (((2, 5),),)


def test_the_end_of_a_longer_word_is_not_the_word(tokenizer):
    prompt = "a xcat, a cat"
    ((positions,),) = find_subject(tokenizer, (prompt,), ("cat",))
    assert positions == (len(tokenizer(prompt).input_ids) - 2,)


def test_an_image_may_lack_a_phrase_if_it_has_another(tokenizer):
    found = find_subject(tokenizer, ("a cat on a bus", "a red bus"), ("cat", "bus"))
    assert found == (((2,), (5,)), ((), (3,)))


@pytest.mark.parametrize(
    ("prompts", "subject", "message"),
    [
        (PROMPTS, ("dog",), "no prompt has the words of --subject 'dog'"),
        (("a cat", "a bus"), ("cat",), "the prompt 'a bus' does not name the subject, 'cat'"),
        (PROMPTS, ("cat", "dog"), "no prompt has the words of --subject 'dog'"),
        (PROMPTS, (" ",), "a subject without a word was given"),
        (("a photo of a cat",) * 2, (), "start with 'a photo of a cat'; name it with --subject"),
        (("cats", "a bus"), (), "which start with different words; name it"),
    ],
)
def test_says_what_cannot_be_found(tokenizer, prompts, subject, message):
    with pytest.raises(ConsistError, match=message):
        find_subject(tokenizer, prompts, subject)
