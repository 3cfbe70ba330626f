# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # clipit in Python
#
# Every task of the command `clipit` is also a function, which takes a configuration and returns an
# object with paths and DataFrames. This notebook indexes reports, pairs tiles with them, trains a
# classifier, and tests whether the text helped.
#
# It runs in less than a minute on two CPU cores, because its tiles and reports are synthetic and
# its models are the tiny ones that ship with clipit. Its scores therefore say nothing about
# pathology; see [Results](results.md) for measurements.

# %%
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

import clipit
from clipit.synthetic.tile_world import WorldConfig, ensure_world

world = ensure_world(Path("world"), WorldConfig(train=120, validation=40, test=80, shift=8, reports=24))
sorted(path.name for path in world.iterdir())

# %% [markdown]
# ## Configuration
#
# `load_config` reads a YAML file or a shipped configuration by its name (`clipit init` lists them).
# Any key of [Configuration](configuration.md) can be changed, by its dotted name or by its section.
# Invalid keys and values raise a `ConfigError` that lists all of them; every error that clipit raises
# is a `clipit.ClipitError`.

# %%
config = clipit.load_config(
    "demo",
    {
        "name": "tutorial",
        "output": "outputs",
        "tiles.path": world / "tiles.csv",
        "tiles.images": world / "tiles.zip",
        "reports.path": world / "reports.jsonl",
        "reports.morphology_prompts": None,
        "reports.boilerplate_prompts": None,
        "prompts": world / "prompts.yaml",
        "evaluation.splits": ["test"],
        "evaluation.bootstrap": 50,
    },
    training={"steps": 12, "evaluate_every": 6, "checkpoint_every": 12, "tiles_per_step": 24, "log_every": 1},
    comparison={"shifted": {}, "steps": [12]},
)
config.run.tiles.labels

# %%
try:
    clipit.load_config(config, {"lora.rnk": 4, "training.steps": 0})
except clipit.ClipitError as error:
    print(error)

# %% [markdown]
# ## Reports become snippets, and tiles are paired with them
#
# The reports are unpaired: no report belongs to a tile. They are cut into snippets, and every
# training tile is paired with the snippet whose embedding is the nearest in the joint space of the
# vision-language model (VLM).

# %%
index = clipit.build_text_index(config)
index.snippets[["snippet_id", "text"]].head()

# %%
paired = clipit.pair(config)
best = paired.pairs.nlargest(200, "similarity").drop_duplicates("text").head(6)
best[["tile_id", "similarity", "text"]]

# %% [markdown]
# Look at the pairs before training on them. `paired.page` is the path of a page with all pairs.

# %%
figure, axes = plt.subplots(1, len(best), figsize=(12, 2.5))
for axis, (_, row) in zip(axes, best.iterrows(), strict=True):
    axis.imshow(paired.image(row.tile_id))
    axis.set_title(textwrap.fill(row.text, 26), fontsize=7)
    axis.axis("off")
figure.tight_layout()

# %% [markdown]
# ## Training
#
# An arm is a named training recipe. `image_only` uses labels alone; `clip_it_all` also distils the
# text that the tiles are paired with. Training again with the same configuration returns the
# finished run at once.

# %%
run = clipit.train(clipit.load_config(config, arm="clip_it_all"))
run.scores.query("split == 'test' and metric in ['accuracy', 'auroc']")

# %%
figure, axis = plt.subplots(figsize=(5, 3))
losses = run.history.dropna(subset=["loss"])
axis.plot(losses["step"], losses["loss"])
axis.set(xlabel="step", ylabel="training loss")
figure.tight_layout()

# %% [markdown]
# ## Prediction
#
# The exported classifier needs only images: no report, no VLM, none of the training data. It is a
# folder that `clipit.load_classifier` opens anywhere.

# %%
classifier = run.load_classifier()
test = run.predictions.query("split == 'test'").head(4)
images = [paired.image(name) for name in test["id"]]
list(zip(test["label"], classifier.predict(images), strict=True))

# %% [markdown]
# Because the classifier was trained with text, it also classifies zero-shot, here with prompts that
# were not used in training. New prompts need the VLM used in training; `zero_shot(images)` uses the
# prompts stored in the classifier.

# %%
classifier.zero_shot(images, {"tumour": ["adenocarcinoma with atypia"], "other": ["normal tissue"]}).round(2)

# %% [markdown]
# ## Whether the text helped
#
# A single score does not show whether the text helped. `compare` trains every arm with several
# seeds and gives the differences from the baseline with their intervals. With two seeds, as here,
# the intervals are wide: to support a claim, use five or more seeds, and controls such as
# `shuffled_pairs`.

# %%
comparison = clipit.compare(
    clipit.load_config(
        config,
        {"comparison.arms": ["image_only", "clip_it_all"], "comparison.seeds": [0, 1], "comparison.analyses": []},
    )
)
table = comparison.table.query("test_set == 'test' and not reference")
table[["arm", "mean", "sd", "difference", "low", "high", "p"]].round(3)

# %%
figure, axis = plt.subplots(figsize=(5, 2))
students = table.dropna(subset=["difference"])
bounds = [students["difference"] - students["low"], students["high"] - students["difference"]]
axis.errorbar(students["difference"], students["arm"], xerr=bounds, fmt="o", capsize=4)
axis.axvline(0, color="grey", linestyle=":")
axis.set(xlabel="accuracy minus image_only (95% t-interval over seeds)")
figure.tight_layout()

# %%
print(comparison.verdict)

# %% [markdown]
# `comparison.page` is the path of the whole report, with the tiles on which the arms differ.
# `clipit.tune` tunes hyperparameters with the same grid for every arm, and `clipit.probe`
# evaluates the frozen models; see the [Python API](api.md).
