"""Everything about models: specs, operators, surgery, the three stages."""
