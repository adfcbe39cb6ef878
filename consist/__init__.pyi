"""The public names of consist, for type checkers, editors and the lazy import."""

from .attention.lora_guidance import weak_unconditional as weak_unconditional
from .attention.method import Method as Method
from .attention.method import Site as Site
from .attention.processor import shared_attention as shared_attention
from .errors import ConsistError as ConsistError
from .evaluation.ablation.measuring import ablate as ablate
from .evaluation.ablation.settings import Setting as Setting
from .evaluation.evaluate import evaluate as evaluate
from .methods import METHODS as METHODS
from .methods.consistory import Consistory as Consistory
from .methods.isolated import Isolated as Isolated
from .methods.matched import Matched as Matched
from .methods.notch import Notch as Notch
from .methods.one_prompt import OnePrompt as OnePrompt
from .methods.sdsa import Sdsa as Sdsa
from .methods.shared import Shared as Shared
from .methods.spectral import Spectral as Spectral
from .methods.storydiffusion import StoryDiffusion as StoryDiffusion
from .methods.stylealigned import StyleAligned as StyleAligned
from .models.loading import load as load
from .models.new_words import new_words as new_words
from .prompts.one_prompt import encode_prompts as encode_prompts
from .prompts.one_prompt import identity_tokens as identity_tokens
from .prompts.phrases import find_subject as find_subject
from .runs.config import RunConfig as RunConfig
from .runs.drawing import generate as generate
from .runs.extending import extend as extend
from .runs.extending import redo as redo
from .runs.extending import take_subject as take_subject
from .runs.references import with_references as with_references
from .runs.subject import Subject as Subject
from .spectra.rules import parse_spectrum as parse_spectrum
from .training.config import TrainConfig as TrainConfig
from .training.finetune import finetune as finetune

__version__: str
__all__: list[str]
