"""The engine of settings 2 to 6: sequences are fed to a language model at the least cost, by ways that are proven."""
