"""The paper's tables again: what each needs is run, and printed beside the paper's figures."""
