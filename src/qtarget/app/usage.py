"""What `qtarget --help` prints, and `qtarget COMMAND --help` of commands without a parser of options."""

from __future__ import annotations

USAGE = """qtarget: fine-tune language models towards designed targets, and compare the designs

  qtarget train [-m] [overrides]     fine-tune one configuration, or with -m every combination
                                     qtarget train -m target=sft,dft,target_sft model=tiny
  qtarget sweep FILE [--slots N] …   a W&B sweep file without W&B: grid, random, bayes, early_terminate
  qtarget cache detail=hidden …      score the data with the prior or a teacher once, for all runs to share
  qtarget evaluate checkpoint=WHERE  a checkpoint or any model: avg@k, pass@k, maj@k, calibration, retention
  qtarget compare DIR…               table, report.html and comparison.png of the runs below DIR
  qtarget agents SWEEP --gpus 0-7    a W&B agent per GPU, for a sweep that `wandb sweep sweeps/NAME.yaml` made
  qtarget dashboard --project NAME   a workspace and a report at W&B that set the project's designs side by side
  qtarget show target=NAME           a target design in words: formula, γ, residual, w, what it needs, paper
  qtarget lens target=NAME,…         what a design teaches, as curves; with checkpoint=RUN token by token
  qtarget doctor                     versions, device, where the model comes from, what is missing
  qtarget completion bash|zsh|fish   what your shell needs to complete all of this; --help says where to put it

Overrides are Hydra's: key=value, group=option. `qtarget train --cfg job` prints the whole configuration,
`qtarget train --help` the groups and their options, `qtarget COMMAND --help` what any command takes.
HYDRA_FULL_ERROR=1 shows full tracebacks.
"""

CACHE = """qtarget cache: score a data set once with the prior or a teacher, before the runs that share the scores

  detail=label|topk|hidden    what is kept of each token (default: hidden)
  role=prior|teacher          whose scores (default: prior)
  KEY=VALUE, GROUP=OPTION     any override of `qtarget train`: data, model, references.teacher.name, …
  --cfg job                   print the configuration, score nothing

  qtarget cache data=gsm_symbolic detail=label
  qtarget cache role=teacher references.teacher.name=MODEL detail=topk references.teacher.topk=50"""

EVALUATE = """evaluate takes checkpoint=WHERE (a run, a model's folder or its id) and overrides of `qtarget train`:
  qtarget evaluate checkpoint=outputs/runs/HASH eval.samples=8 eval.temperature=1
  qtarget evaluate checkpoint=MODEL data=gsm_symbolic eval=small name=ROW_LABEL
With --cfg job it prints the configuration and evaluates nothing."""

SHOW = "show takes target=NAME,…, target/PART=OPTION and target.PART.FIELD=VALUE"

LENS = (
    "lens takes target=NAME,…, target/PART=OPTION, target.PART.FIELD=VALUE and out=FOLDER; with checkpoint=WHERE also "
    "rows=N and the overrides of `qtarget train`"
)

SHOW_EXAMPLES = """
  qtarget show
  qtarget show target=target_sft target/residual=uniform target.reliance.alpha=0.5"""

LENS_EXAMPLES = """
  qtarget lens target=sft,dft,target_sft
  qtarget lens target=dft checkpoint=outputs/runs/HASH rows=8"""

DOCTOR = "qtarget doctor: versions, device, where the model comes from, what is missing. It takes no arguments."

COMPLETION = """qtarget completion SHELL: print the completion script of bash, zsh or fish

  eval "$(qtarget completion bash)"       in ~/.bashrc
  eval "$(qtarget completion zsh)"        in ~/.zshrc
  qtarget completion fish | source        in ~/.config/fish/config.fish"""

TEXTS = {
    "cache": CACHE,
    "evaluate": EVALUATE,
    "show": SHOW + SHOW_EXAMPLES,
    "lens": LENS + LENS_EXAMPLES,
    "doctor": DOCTOR,
    "completion": COMPLETION,
}
"""Command → the whole text of its help."""
