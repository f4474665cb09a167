"""Recipe that makes the testbed's assets from Fashion-MNIST."""
