"""A prompt that is read once for all its answers: nothing else changes."""


def test_answers_that_share_their_prompts_have_the_values_and_gradients_of_rows(
    trainings, reward_run, sft_run, rating_dir
):
    arguments = dict(reward_run=str(reward_run), sft_run=str(sft_run), ratings=str(rating_dir))
    (found,) = trainings.run("shared_prompts_against_rows", **arguments).results()
    assert found["tokens"] < 0.6 * found["tokens_of_rows"] and found["blocks"] == 4
    assert max(found[name] for name in ("logprobs", "entropy", "scores", "gradient", "score_gradient")) < 1e-5
