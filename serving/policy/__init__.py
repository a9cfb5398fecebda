"""Policy files: what an operator asks of power, carbon and directives; one validator for everyone who reads them."""
