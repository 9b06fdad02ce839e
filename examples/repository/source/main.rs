mod shapes;

fn main() {
    println!("{}", shapes::area(2.0));
}
