//! The examples run as they are.

#[path = "../examples/mesh.rs"]
mod mesh;

#[test]
fn mesh_ends_equal() {
    mesh::main();
}
