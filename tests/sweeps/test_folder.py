"""The key of a study: settings that came later do not change it while they have their default."""

from tdrs.configuration import compose, plain
from tdrs.sweeps.folder import study_key


def test_a_budget_of_tokens_changes_the_key_only_if_there_is_one() -> None:
    config = plain(compose("sweep", []))
    earlier = {name: value for name, value in config.items() if name != "batch_tokens"}
    assert config["batch_tokens"] is None
    assert study_key(earlier) == study_key(config)
    assert study_key(plain(compose("sweep", ["batch_tokens=500"]))) != study_key(config)
