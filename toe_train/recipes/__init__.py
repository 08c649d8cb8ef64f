"""What a run is: the schema of the configuration, its loading, and the plan of its epochs."""

from toe_train.recipes.compare import completed, differences, essential, experiment
from toe_train.recipes.curriculum import Clock, CurriculumStage
from toe_train.recipes.derived import plain_run, randomly_dropping_run, run_on_smaller_images
from toe_train.recipes.effect import read_values
from toe_train.recipes.fields import HF, NEW, Size, side_of, sides_of
from toe_train.recipes.load import dump_config, left_to_weights, load_config, load_saved, load_saved_values
from toe_train.recipes.methods import DepthGrowthConfig, StructuredSparsityConfig, TokenMergingConfig
from toe_train.recipes.oddities import notes, refusals
from toe_train.recipes.of_images import of_images
from toe_train.recipes.plan import EpochPlan, Stretch, config_at, curriculum_stages, plan_epochs, stretches
from toe_train.recipes.schema import RunConfig, dotted_key
from toe_train.recipes.sections import ExpansionConfig, MethodSection, ModelConfig

__all__ = [
    "HF",
    "NEW",
    "Clock",
    "CurriculumStage",
    "DepthGrowthConfig",
    "EpochPlan",
    "ExpansionConfig",
    "MethodSection",
    "ModelConfig",
    "RunConfig",
    "Size",
    "Stretch",
    "StructuredSparsityConfig",
    "TokenMergingConfig",
    "completed",
    "config_at",
    "curriculum_stages",
    "differences",
    "dotted_key",
    "dump_config",
    "essential",
    "experiment",
    "left_to_weights",
    "load_config",
    "load_saved",
    "load_saved_values",
    "notes",
    "of_images",
    "plain_run",
    "plan_epochs",
    "randomly_dropping_run",
    "read_values",
    "refusals",
    "run_on_smaller_images",
    "side_of",
    "sides_of",
    "stretches",
]
