# What the tests put into the object store as a message.
@0xb1f0c2a7d4e96385;

struct Sample {
  name @0 :Text;
  values @1 :List(Float64);
  children @2 :List(Sample);
}
