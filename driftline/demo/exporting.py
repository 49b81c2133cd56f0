"""The act of `export`: weights that answer without Kafka and Postgres, and the proof that they do."""

from __future__ import annotations

from driftline.demo.stage import Play


def export(play: Play) -> None:
    """One pass writes a bundle of each learner; each is then loaded alone and asked its example again."""
    facts, players, patience = play.facts, play.players, play.plot.patience_s
    facts.exported = players.ask("export", "--once", "--port", "none", seconds=patience)
    facts.bundles = players.ask("bundle check", str(play.data / "bundles"), seconds=patience)
    checked = ", ".join(bundle["snapshot"] for bundle in facts.bundles)
    play.say(f"export wrote {facts.exported['bundles']} bundles; loaded alone they answer as before: {checked}")
