"""The training stages: pretraining with `Trainer`, fine-tuning with TRL and PEFT, and what both need."""
