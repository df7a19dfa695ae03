"""`python -m pipeline`: the main job, once or in a sweep."""

from pipeline import resume
from pipeline.cli import command
from pipeline.round_trip import check, round_trip

if __name__ == "__main__":
    command.run(round_trip, config_name="config", check=check, complete=resume.with_recorded)
