"""Makes the embedded testbed from Fashion-MNIST."""
