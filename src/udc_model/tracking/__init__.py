"""The MLflow side of a run: where it is stored, how it is opened, continued and filled. Nothing else imports mlflow."""
