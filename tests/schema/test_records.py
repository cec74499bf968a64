from megatron_reason.schema.records import Finish, Message, Origin, Problem, Sample


def problem(**changes: str) -> Problem:
    return Problem(
        (Message("user", changes.get("text", "1+1?")),), changes.get("answer", "2"), "test"
    )


def test_a_problem_is_known_by_its_text_and_answer_alone() -> None:
    assert problem().problem_id == problem().problem_id
    assert problem(text="1+2?").problem_id != problem().problem_id
    assert problem(answer="3").problem_id != problem().problem_id


def test_equal_responses_of_one_generator_are_told_apart_by_their_index() -> None:
    def sample(index: int) -> Sample:
        return Sample.of(
            problem(), "2", finish=Finish.GIVEN, origin=Origin.TEACHER, generator="g", index=index
        )

    assert sample(0) == sample(0)
    assert sample(0).sample_id != sample(1).sample_id
    assert sample(0).problem_id == problem().problem_id
