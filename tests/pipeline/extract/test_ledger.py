from pipeline.extract.ledger import MAX_UNEXPLAINED, Ledger, Standing


def test_the_first_attempt_is_fast_and_a_finished_shard_is_forgotten() -> None:
    ledger = Ledger()
    assert not ledger.begin("a").careful
    ledger.end("a", Standing(1.0, 5))
    assert not ledger.begin("a").careful


def test_an_image_is_convicted_after_two_careful_deaths_and_the_shard_read_at_the_fourth_attempt() -> None:
    ledger = Ledger()
    attempts = [ledger.begin("a")]
    for _ in range(3):  # what three workers do; the first one announces nothing
        if attempts[-1].careful:
            ledger.enter("a", 512)
            ledger.enter("a", None)
            ledger.enter("a", 1536)
        attempts.append(ledger.begin("a"))
    assert [attempt.deaths for attempt in attempts] == [0, 1, 2, 3]
    assert [attempt.convicted for attempt in attempts] == [frozenset()] * 3 + [frozenset({1536})]


def test_shards_do_not_share_their_suspects() -> None:
    ledger = Ledger()
    for shard in ("a", "b"):
        ledger.begin(shard)
        ledger.begin(shard)
        ledger.enter(shard, 512)
    assert ledger.begin("a").convicted == frozenset() == ledger.begin("b").convicted


def test_a_death_before_anything_was_announced_is_not_held_against_the_last_suspect() -> None:
    ledger = Ledger()
    ledger.begin("a")
    ledger.begin("a")
    ledger.enter("a", 512)
    ledger.begin("a")
    assert ledger.begin("a").convicted == frozenset()


def test_deaths_between_images_convict_nobody_and_end_in_giving_up() -> None:
    ledger = Ledger()
    ledger.begin("a")
    for death in range(MAX_UNEXPLAINED + 1):
        ledger.enter("a", 512)
        ledger.enter("a", None)  # decoded: what kills now is not the image
        attempt = ledger.begin("a")
        assert attempt.hopeless == (death == MAX_UNEXPLAINED)
    assert attempt.convicted == frozenset()


def test_shards_that_share_their_workers_are_given_more_deaths() -> None:
    ledger = Ledger(streams=3)
    ledger.begin("a")
    attempts = [ledger.begin("a") for _ in range(3 * MAX_UNEXPLAINED + 1)]
    assert [attempt.hopeless for attempt in attempts] == [False] * 3 * MAX_UNEXPLAINED + [True]


def test_the_last_words_of_a_task_that_was_given_up_are_nobody_s() -> None:
    ledger = Ledger()
    ledger.begin("a")
    ledger.end("a", Standing())
    ledger.enter("a", 512)
    assert ledger.begin("a").convicted == frozenset()


def test_a_shard_of_killers_is_not_hopeless_while_each_pair_of_deaths_convicts_one() -> None:
    ledger = Ledger()
    ledger.begin("a")
    attempt = ledger.begin("a")
    for killer in range(20):
        for _ in range(2):
            ledger.enter("a", killer)
            attempt = ledger.begin("a")
    assert attempt.convicted == frozenset(range(20))
    assert attempt.deaths == 41
    assert not attempt.hopeless


def test_progress_is_the_sum_over_shards_and_what_a_dead_worker_did_is_taken_back() -> None:
    ledger = Ledger()
    for shard in ("a", "b"):
        ledger.begin(shard)
        ledger.advance(shard, Standing(0.25, 100, 3, waiting=64))
    assert ledger.standing() == Standing(0.5, 200, 6, 128)
    ledger.end("a", Standing(1.0, 400, 12))
    ledger.begin("b")
    assert ledger.standing() == Standing(1.0, 400, 12)
    ledger.advance("a", Standing(0.3, 120))  # late news of a shard that has ended
    assert ledger.standing() == Standing(1.0, 400, 12)
