"""The folder of a training run as a format: training writes it, reports and evaluation read it.

config.yaml        what defines the run (:mod:`vggfast.runs.config`)
steps.csv          loss, errors, learning rate and speed, every few steps (:mod:`vggfast.runs.log`)
metrics.csv        the validation after each epoch (:mod:`vggfast.runs.log`)
log.jsonl          both, and events such as a resumed session (:mod:`vggfast.runs.log`)
model.safetensors  the weights with the lowest validation error so far
checkpoints/       everything that the next step depends on (:mod:`vggfast.training.checkpoint`)
metrics.json       the final evaluation
report.html, curves.png, confusion.png, predictions.png
"""
