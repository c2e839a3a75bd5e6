"""What a training step costs, part by part, against plain fine-tuning."""
