// Everything a program needs: #include <troupe/troupe.h>.
#pragma once

#include "troupe/actor_pool.h"
#include "troupe/coroutine.h"
#include "troupe/limited_actor.h"
#include "troupe/module.h"
#include "troupe/queue.h"
#include "troupe/session.h"
#include "troupe/signal.h"
