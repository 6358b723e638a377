"""Pure math of the method: tensors in, tensors out. No config, logging, process group or device lives here."""
