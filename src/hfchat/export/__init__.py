"""The export stage: a trained model merged, certified and converted. It never talks to the Hub."""
