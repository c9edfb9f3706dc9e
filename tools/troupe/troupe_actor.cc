// `troupe-actor`: the process that hosts one actor, or runs tasks. Everything is in libtroupe, so
// that user code in it shares the same client.
extern "C" int troupe_actor_main(int argc, char** argv);

int main(int argc, char** argv) {
  return troupe_actor_main(argc, argv);
}
