"""Images to logits to decisions with a trained model: predict, serving, export."""
